// Package lab builds small networks out of kernel namespaces, sends traffic through them and breaks them:
// for tests of the switch, for its demo, and for anybody's tests that want a network and no root.
//
//	┌─ sandbox: a process in a user, mount and network namespace of its own ─┐
//	│                                                                        │
//	│   Host a               Here(): the program itself            Host b    │
//	│  ┌────────┐   Veth    ┌──────────────────────────┐   Wire   ┌───────┐  │
//	│  │  eth0 ═╪═══════════╪═ lan0      (switch)  up0 ═╪══[br]════╪═ eth0 │  │
//	│  └────────┘           └──────────────────────────┘          └───────┘  │
//	│    Ping, UDPFlow, TCPBulk, PingPong, RawSocket ──► what it cost        │
//	└────────────────────────────────────────────────────────────────────────┘
//
// The rules:
//
//   - [Enter] (for programs) and [Main] (for tests) run the program again inside a sandbox. As an ordinary
//     user that takes unprivileged user namespaces; where they are refused the error, or the skipped test,
//     says which switch is off.
//   - A [Lab] owns what is built in it, and its Close undoes all of it in reverse order. Namespaces have no
//     names in the file system: they are held by descriptors, and the kernel takes everything back when the
//     process ends, however it ends.
//   - No tool is run. Links are made over netlink, traffic is made here in Go, every byte of it is checked.
//   - Every wait is bounded: by the context given, or by ten seconds when it has no deadline.
//   - "a" is the host that a method is called on or that is named first, "b" the other one.
//
// A test in a few lines:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
//	func TestCut(t *testing.T) {
//		l := lab.NewTest(t)
//		a, b := l.Host("a"), l.Host("b")
//		l.Veth(a, "eth0", b, "eth0", lab.VethOptions{})
//		a.AddAddr("eth0", "10.0.0.1/24")
//		b.AddAddr("eth0", "10.0.0.2/24")
//		flow, err := a.StartUDPFlow(t.Context(), b, netip.MustParseAddr("10.0.0.2"), lab.UDPFlowOptions{})
//		…
//		baseline := flow.Snapshot(t.Context())
//		// break something
//		failover := flow.Snapshot(t.Context())
//		t.Logf("lost %d, silent for %v", failover.AtoB.Lost, failover.AtoB.LongestGap)
//	}
package lab
