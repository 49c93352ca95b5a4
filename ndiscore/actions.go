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
	left     int    // evMoved: the member that was left
	member   int    // evMoved: the first one now
	epoch    uint64 // evMoved
	reply    int    // operation to answer, 0 for none
	observed Observation
	attrs    Attributes // evDone of an initialize: what it stated
	poll     pollResult // evDone of a poll
	protocol string     // evUnbind, evReenumerate, evLeave
	target   string     // evUnbind; evSecondary: the primary
	filter   string     // evFilterAdded, evFilterLeaves, evFilterMoved
	place    int        // evFilterMoved: from the miniport up, without the module itself; negative: the top
	names    []string   // evBundleLeft: the members
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
	evBindingsChanged                  // a protocol came, or wants other targets
	evSuspend                          // operator: put it to sleep
	evResume                           // … and wake it
	evQuery                            // may it be removed?
	evCancelQuery                      // it will not be removed after all
	evReset                            // operator: reset it
	evMiniportReset                    // the miniport asks for a reset
	evInhibit                          // nobody is to be bound to it
	evAllow                            // … any more
	evHold                             // it is to be paused, with all above it
	evRelease                          // … no longer
	evFilterAdded                      // a module was put into its chain
	evFilterLeaves                     // a module is to leave it
	evFilterMoved                      // its chain is to have another order
	evUnbind                           // a protocol wants to be rid of a binding
	evReenumerate                      // … or to be offered again what it is not bound to
	evLeave                            // a protocol leaves, or gave up targets: answer when it is bound nowhere that it does not want
	evAttributes                       // an adapter's attributes changed while it ran
	evSecondary                        // its miniport makes an adapter a secondary
	evPromoteSelf                      // … and a secondary the primary
	evBundleLeft                       // an ndis5 bundle is gone: answer when nobody is bound for its sake
	evSettle                           // answer when there is nothing left to do for it
)

// operation is what somebody waits for the end of, for errors.
func (k eventKind) operation() string {
	switch k {
	case evStart:
		return "start"
	case evPause:
		return "pause"
	case evStop:
		return "stop"
	case evRemove:
		return "remove"
	case evSuspend:
		return "suspend"
	case evResume:
		return "resume"
	case evQuery:
		return "query remove"
	case evCancelQuery:
		return "cancel remove"
	case evReset:
		return "reset"
	case evInhibit:
		return "inhibit binds"
	case evHold:
		return "require pause"
	case evFilterAdded:
		return "insert filter"
	case evFilterLeaves:
		return "remove filter"
	case evFilterMoved:
		return "move filter"
	}
	return "settle"
}

// action is an output of the machine.
type action struct {
	kind     actionKind
	adapter  string
	filter   string // for filter actions: the module's name
	protocol string // for binding actions
	target   string // for binding actions: the name the protocol asked for
	halt     HaltAction
	set      teamSet // actTeam
	link     LinkState
	reply    int
	err      error
	after    time.Duration    // actWake, actAwait, actStatus
	event    Event            // actEvent
	notice   NetEvent         // actNotify
	power    PowerState       // actSetPower
	oper     operState        // actOper
	change   AttributesChange // actFollow
	names    []string         // actReorder: modules; actPrimary: members
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
	actBindList
	actPnP
	actNotify   // tell filters and bindings; a query may be refused
	actSetPower // put the device to sleep, or wake it
	actRestore  // packet filter and multicast list, after a device forgot them
	actReset
	actPoll // check for hang

	// Done at once by the core.
	actClose    // close the data path of an adapter, reason in halt
	actAwait    // call evArrived when the device can be started
	actForget   // the adapter's slot is gone
	actShutdown // call Shutdowner
	actTeam     // publish a team's member set
	actStatus   // a team's link state or network change
	actFollow   // a team's MAC or MTU follows its members'
	actPrimary  // an ndis5 bundle's primary is now adapter (may be "")
	actReply    // answer an operation
	actWake     // call evTick after a while
	actEvent    // put into the event log
	actOper     // the operational state is another one
	actReorder  // the filter chain has another order now
	actUnstack  // a filter module is gone from the chain
	actLeft     // a protocol is bound nowhere any more
)

// String is the token of a call in golden traces, "" for what is not a call.
func (a action) String() string {
	switch a.kind {
	case actStartDevice:
		return a.adapter + ".StartDevice"
	case actInitialize:
		return a.adapter + ".Init"
	case actAttach:
		return a.adapter + "." + a.filter + ".Attach"
	case actBind:
		return a.protocol + ".Bind(" + a.adapter + ")"
	case actRestart:
		return a.adapter + ".Restart"
	case actRestartFilter:
		return a.adapter + "." + a.filter + ".Restart"
	case actRestartBinding:
		return a.protocol + ".Event(" + a.adapter + ", Restart)"
	case actPauseBinding:
		return a.protocol + ".Event(" + a.adapter + ", Pause)"
	case actPauseFilter:
		return a.adapter + "." + a.filter + ".Pause"
	case actPause:
		return a.adapter + ".Pause"
	case actUnbind:
		return a.protocol + ".Unbind(" + a.adapter + ")"
	case actDetach:
		return a.adapter + "." + a.filter + ".Detach"
	case actHalt:
		return fmt.Sprintf("%s.Halt(%s)", a.adapter, a.halt)
	case actRemoveDevice:
		return a.adapter + ".RemoveDevice"
	case actBindsComplete:
		return a.protocol + ".Event(BindsComplete)"
	case actBindList:
		return a.protocol + ".Event(BindList)"
	case actPnP:
		return a.adapter + ".PnP(SurpriseRemoved)"
	case actNotify:
		return fmt.Sprintf("%s.Event(%s)", a.adapter, a.notice)
	case actSetPower:
		return fmt.Sprintf("%s.SetPower(%s)", a.adapter, a.power)
	case actRestore:
		return a.adapter + ".Restore"
	case actReset:
		return a.adapter + ".Reset"
	case actPoll:
		return a.adapter + ".CheckForHang"
	case actAwait:
		return a.adapter + ".AwaitDevice"
	case actForget:
		return a.adapter + ".Gone"
	case actShutdown:
		return a.adapter + ".Shutdown"
	case actTeam:
		return fmt.Sprintf("%s.Active(%s)", a.adapter, a.set)
	case actFollow:
		return fmt.Sprintf("%s.Status(attributes %s, %d)", a.adapter, a.change.MAC, a.change.MTU)
	case actStatus:
		if a.after > 0 {
			return fmt.Sprintf("%s.Status(%s after %s)", a.adapter, a.why, a.after)
		}
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
