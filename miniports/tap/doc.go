// Package tap is the miniport for TAP devices: one adapter is one Ethernet link
// between the switch and the kernel, whose end of it is an ordinary interface.
//
//	kernel's IP stack, a VM, a container
//	      | interface "lan0"                      /dev/net/tun
//	      v                                            |
//	  [ TAP device ] <-- writev: header + frame -- transmitter <-- Send
//	                 --- read:   header + frame -> receiver    --> IndicateReceive
//
// Each frame crosses with a virtio_net_hdr in front of it, so that a 64 KiB
// super-frame and an unfinished checksum pass as they are.
//
// Who is who: the kernel's end has the MAC address of the device (key mac). The
// switch's end has one of its own, in Attributes.MAC, derived from the
// adapter's name: the address of whoever is bound directly to the adapter.
//
// The device's life: StartDevice makes it, or adopts one of the same name.
// github.com/songgao/water makes it, persistent; it knows no virtio_net_hdr, so
// its descriptor is closed and ours attached, and persistence is taken away
// again unless it was found or is asked for. A process that dies in between
// leaves a device that the next start adopts, and that stays. From then on the
// device lives as long as our descriptor: through Halt(Stopped), with the
// kernel's addresses on it, until RemoveDevice.
//
// Down, gone, moved:
//   - EIO on a write: the kernel's end is down, nothing more.
//   - EBADFD, confirmed by TUNGETIFF: it was deleted, a surprise removal. It is
//     not made again behind the back of whoever deleted it: AwaitDevice waits
//     until somebody makes one of that name.
//   - RTM_DELLINK while TUNGETIFF still answers: it was moved to another
//     network namespace, where it goes on working; see follower. One that was
//     moved by the time that a stopped adapter starts is found by its descriptor.
//
// Queues. Each is a descriptor with a receive goroutine; a worker sends through
// the one of its own number. The kernel remembers by which queue it got a flow
// and answers by the same one, so a flow keeps its queue both ways. TCP through
// two devices, one queue and two in turns in one run on two CPUs, medians, ahead
// of other load (SCHED_RR): one flow 0.97 times the throughput, eight flows 1.24
// times (beside other load). A queue costs 23 KiB while it is idle.
//
// Reset attaches new descriptors and closes the old ones. Where there can be
// only one at a time the device is made persistent meanwhile. Sleep
// (OIDPnPSetPower) takes the carrier from the kernel's end (TUNSETCARRIER).
//
// Memory: frames are read one behind the other into a slab of 512 KiB, which is
// borrowed from a pool shared by all TAP adapters when the receive goroutine
// wakes up and given back before it sleeps. What is indicated is borrowed from
// the slab.
//
// Goroutines: a receive goroutine per queue, from Restart to Pause, waits for the
// device; the follower, while the device is in a foreign namespace, for its
// ticker. A send queue's lock is a leaf, held for one batch's system calls.
package tap
