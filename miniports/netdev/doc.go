// Package netdev holds what the miniports for kernel devices share: the
// virtio_net_hdr codec, a watcher of link changes, network namespaces, and the
// loop that waits for frames. It is not a miniport.
//
//	         netlink                       device fd
//	            |                              |
//	         Watcher  (one per namespace)     Loop  (one per receive queue)
//	       LinkInfo |                          | Receive
//	                v                          v
//	LinkReporter ---------- miniport -------- Offload <-> virtio_net_hdr
//	     | IndicateStatus       | IndicateReceive, Send
//	     v                      v
//	                 ndiscore
//
// Rules:
//   - A Watcher's goroutine calls the callbacks itself, one after another, in
//     the order of the kernel's events. A callback must not block and must not
//     close its own subscription.
//   - A Watcher never ends by an error: it opens another socket, and says
//     meanwhile that it knows nothing (LinkInfo.Lost).
//   - A Loop's goroutine is the miniport's; the Loop starts none. It sleeps in
//     the Go netpoller and polls a short, adaptive while before it sleeps.
//   - A Slab is pooled memory for one batch, held only while awake.
//   - What comes out of the kernel is checked here once and bounded; what a
//     peer may have written into a frame is the core's to check.
package netdev
