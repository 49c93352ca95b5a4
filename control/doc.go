// Package control is how a running switch is asked and told: HTTP and JSON on a
// unix socket, and the Go client that the command line is made of. README.md
// lists every path.
//
//	vswitch adapter list ──▶ Client ══ unix socket ══▶ Server ──▶ Switch (the running one)
//	curl --unix-socket …  ──────────────┘                │
//	                                                who is asking? how much, for how long?
//
// Rules:
//
//   - The socket lives in the file system, never in the abstract namespace, and
//     has its mode from the first moment: at no time can anybody connect who may
//     not later.
//   - One switch per socket: a lock beside it says who owns it. What a switch
//     that died left behind is replaced; a switch that answers is not.
//   - Whoever connects is known by the kernel's word (SO_PEERCRED): our own user
//     and root, with Options.Group also that group's members. An ID that our user
//     namespace does not know is nobody's.
//   - A request that is wrong in any way changes nothing and gets an Error: a
//     code for programs, a sentence for people, and what to do about it.
//   - Connections, followers, headers, bodies and times are bounded (the
//     constants in limits.go). Nobody who is slow holds up anybody else.
//   - The JSON is that of the types in api.go. Fields are added, never renamed
//     and never removed, and lists are never null.
//
// Serve owns the accept loop; net/http has one goroutine per connection, which
// ends with it. Serve returns when all of them have ended.
package control
