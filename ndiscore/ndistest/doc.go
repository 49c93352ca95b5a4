// Package ndistest is the test kit of ndiscore's contract, for those who write
// miniports, protocols and filters, and for the core itself.
//
//	fakes        Adapter, Protocol, Filter, Clock: wholly under the test's control, over a real Core
//	Verifier     stands between the core and any adapter and reports every breach of the contract;
//	             VerifiedDriver and VerifiedProtocol do so for those
//	TestAdapter  the tests that every miniport must pass
//
//	        Protocol (fake)
//	            |
//	        ndiscore.Core (the real one)
//	            |
//	        Verifier
//	            |
//	        a miniport  ------ device ------ Peer
//
// A Trace, shared by the fakes, records their calls in the order in which they
// began, in the words of ndiscore's golden traces:
//
//	M.Init  P1.Bind(M)  M.Restart  P1.Event(M, Restart)
//
// Rules: the fakes keep the contract unless told otherwise (they are tested
// against the Verifier), each goroutine of theirs ends with Pause, and what
// waits has a deadline.
package ndistest
