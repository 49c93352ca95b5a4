// Package afpacket is the miniport for interfaces of the kernel, by packet
// sockets: one adapter is one interface, whose frames the switch receives and
// sends in the place of the kernel's own IP stack.
//
//	NIC, veth
//	   |            ring of slots, shared memory
//	   +--> kernel [ ][ ][x][x][ ] ---------------> receiver    --> IndicateReceive
//	   |             longer ones: socket buffer -->  (slab)
//	   +<-- sendmmsg: header + frame, 64 at a time <- transmitter <-- Send
//
// Each frame crosses with a virtio_net_hdr in front of it (PACKET_VNET_HDR), so
// that a 64 KiB super-frame and an unfinished checksum pass as they are.
//
// The socket is opened with protocol 0, set up, and bound last: with a protocol
// it would hear every interface until then. It does not hear what the machine
// itself sends (PACKET_IGNORE_OUTGOING).
//
// Receiving. An ordinary frame is put by the kernel into a slot of the ring
// (TPACKET_V2) and lent from there. A frame longer than a slot, a super-frame,
// leaves a mark in its slot and waits whole in the socket's buffer
// (PACKET_COPY_THRESH); it is read into a pooled slab. Slots become the
// kernel's again when the core has returned the batch. Compared on two CPUs
// beside other load, over veth, in turn (Gbit/s of TCP with and without
// offloads, thousands of 60-byte frames a second):
//
//	                                          memory   with         without      60 bytes
//	slots of 68 KiB, 270 of them               18 MiB  7.3 to 10.5  0.8 to 1.3    84 to 290   20000 drops in 1.5 s of TCP
//	slots of 68 KiB, 2048 of them             140 MiB  5.1 to 10.5  0.8 to 2.6   105 to 285
//	recvmmsg of 64, socket buffer of 8 MiB    4.4 MiB  7.6 to 11.0  1.2 to 2.9   163 to 252   with net.core.rmem_max >= 4 MiB
//	this: slots of 1.7 KiB, 4848 of them        8 MiB  6.4 to 11.7  1.1 to 2.9   131 to 369
//
// The ring alone needs too much memory to be deep, and recvmmsg needs
// net.core.rmem_max for every frame, which unprivileged users cannot raise and
// which was 208 KiB before Linux 6.17; here only super-frames depend on it, and
// TCP adapts to a short queue of those.
//
// Queues. Several sockets form a fanout group, see openSockets: one receive
// goroutine each, and a worker sends through the socket of its own number, so a
// flow keeps its queue, and its order, both ways. TCP over veth, one queue and
// two in turns in one run on two CPUs, medians, ahead of other load (SCHED_RR):
// one flow 0.99 times the throughput, eight flows 1.07 times (beside other
// load). A queue costs 28 KiB and its share of the ring.
//
// Reset opens new sockets beside the old ones, deaf, and changes over when they
// are ready. Sleep (OIDPnPSetPower) leaves the sockets bound and deaf.
//
// Link: the interface is up and has carrier, as the link watcher tells. ENETDOWN
// means down, nothing more, and a socket remembers it from earlier, so it counts
// when it comes twice, or when the interface says the same. Only RTM_DELLINK,
// for a deletion or a move to another namespace, is a surprise removal.
//
// Goroutines: a receive goroutine per queue, from Restart to Pause, waits for its
// socket. A send queue's lock is a leaf, held for one batch's system calls.
package afpacket
