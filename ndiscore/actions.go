package ndiscore

import (
	"fmt"
	"time"
)

// What goes into the machine, and what comes out of it.

// event is an input of the machine.
type event struct {
	kind     eventKind
	adapter  string
	action   *action // evDone: the action that returned
	err      error   // evDone: what it returned
	why      string  // cause, in words
	link     LinkState
	member   int    // evMoved
	epoch    uint64 // evMoved
	reply    int    // operation to answer, 0 for none
	observed Observation
}

type eventKind uint8

const (
	evStart           eventKind = iota // operator or start-up: bring it up
	evPause                            // operator: hold it Paused
	evStop                             // stop, to be started again
	evRemove                           // remove on request
	evRemoveMiniport                   // the miniport gave up (NdisMRemoveMiniport)
	evSurprise                         // the device is gone
	evShutdown                         // the process ends now
	evArrived                          // an awaited device is there
	evDone                             // an action returned
	evLink                             // link state indicated
	evMoved                            // the data path moved a team's active member
	evPromote                          // operator: make member active
	evObserved                         // a prober saw something
	evFailureObserved                  // the data path saw failures on an adapter
	evTick                             // time has passed
	evBindingsChanged                  // a protocol came or went
)

// action is an output of the machine.
type action struct {
	kind     actionKind
	adapter  string
	filter   int    // index, for filter actions
	protocol string // for binding actions
	target   string // for binding actions: the name the protocol asked for
	halt     HaltAction
	set      teamSet // actTeam
	link     LinkState
	reply    int
	err      error
	after    time.Duration // actWake, actAwait
	event    Event         // actEvent
	why      string
}

type actionKind uint8

const (
	// Calls into drivers: each takes its time, and returns as evDone.
	actStartDevice actionKind = iota
	actInitialize
	actAttach
	actBind
	actRestart
	actRestartFilter
	actRestartBinding
	actPauseBinding
	actPauseFilter
	actPause
	actUnbind
	actDetach
	actHalt
	actRemoveDevice
	actBindsComplete
	actPnP

	// Done at once by the core.
	actClose    // close the data path of an adapter, reason in halt
	actAwait    // call evArrived when the device can be started
	actForget   // the adapter's slot is gone
	actShutdown // call Shutdowner
	actTeam     // publish a team's member set
	actStatus   // a team's link state or network change
	actPrimary  // an ndis5 bundle's primary is now adapter (may be "")
	actReply    // answer an operation
	actWake     // call evTick after a while
	actEvent    // put into the event log
)

// String is the token of a call in golden traces, "" for what is not a call.
func (a action) String() string {
	switch a.kind {
	case actStartDevice:
		return a.adapter + ".StartDevice"
	case actInitialize:
		return a.adapter + ".Init"
	case actAttach:
		return fmt.Sprintf("%s.F%d.Attach", a.adapter, a.filter+1)
	case actBind:
		return a.protocol + ".Bind(" + a.adapter + ")"
	case actRestart:
		return a.adapter + ".Restart"
	case actRestartFilter:
		return fmt.Sprintf("%s.F%d.Restart", a.adapter, a.filter+1)
	case actRestartBinding:
		return a.protocol + ".Event(" + a.adapter + ", Restart)"
	case actPauseBinding:
		return a.protocol + ".Event(" + a.adapter + ", Pause)"
	case actPauseFilter:
		return fmt.Sprintf("%s.F%d.Pause", a.adapter, a.filter+1)
	case actPause:
		return a.adapter + ".Pause"
	case actUnbind:
		return a.protocol + ".Unbind(" + a.adapter + ")"
	case actDetach:
		return fmt.Sprintf("%s.F%d.Detach", a.adapter, a.filter+1)
	case actHalt:
		return fmt.Sprintf("%s.Halt(%s)", a.adapter, a.halt)
	case actRemoveDevice:
		return a.adapter + ".RemoveDevice"
	case actBindsComplete:
		return a.protocol + ".Event(BindsComplete)"
	case actPnP:
		return a.adapter + ".PnP(SurpriseRemoved)"
	case actAwait:
		return a.adapter + ".AwaitDevice"
	case actForget:
		return a.adapter + ".Gone"
	case actShutdown:
		return a.adapter + ".Shutdown"
	case actTeam:
		return fmt.Sprintf("%s.Active(%s)", a.adapter, a.set)
	case actStatus:
		return fmt.Sprintf("%s.Status(%s)", a.adapter, a.why)
	case actPrimary:
		return fmt.Sprintf("%s.Primary(%s)", a.target, a.adapter)
	case actReply:
		if a.err != nil {
			return fmt.Sprintf("reply %d: %v", a.reply, a.err)
		}
		return fmt.Sprintf("reply %d: ok", a.reply)
	}
	return ""
}
