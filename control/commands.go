package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// AdapterOp is one operation on an adapter.
type AdapterOp string

// The operations, in NDIS's words.
const (
	OpStart   AdapterOp = "start"   // bring it up
	OpStop    AdapterOp = "stop"    // halt it (Stopped); start brings it back
	OpPause   AdapterOp = "pause"   // no data, everybody stays bound
	OpRestart AdapterOp = "restart" // pause, and start again
	OpReset   AdapterOp = "reset"   // set up its device anew, without a pause
	OpSuspend AdapterOp = "suspend" // put it to sleep
	OpResume  AdapterOp = "resume"  // wake it
	OpRemove  AdapterOp = "remove"  // ask those above, halt it (Disabled), forget it
)

// AdapterOps lists the operations.
var AdapterOps = []AdapterOp{OpStart, OpStop, OpPause, OpRestart, OpReset, OpSuspend, OpResume, OpRemove}

// The bodies of commands, and what they answer beyond Done.
type (
	// OperateRequest is the body of POST /v1/adapters/NAME/OPERATION.
	OperateRequest struct {
		Why   string `json:"why"`   // for the event log; "" means that it was asked for
		Force bool   `json:"force"` // remove: although somebody refuses
	}
	// AdapterSettings is the body of POST /v1/adapters: an [adapter.NAME].
	AdapterSettings struct {
		Name     string         `json:"name"`
		Driver   string         `json:"driver"`
		Settings map[string]any `json:"settings"` // the driver's keys, as in config.toml
	}
	// FilterRequest is the body of POST /v1/filters/insert and …/remove.
	FilterRequest struct {
		Adapter string `json:"adapter"`
		Filter  string `json:"filter"`       // a [filter.NAME]
		At      *int   `json:"at,omitempty"` // from the device up; left out: on top
	}
	// FilterOn is one filter in the chain of an adapter.
	FilterOn struct {
		Adapter  string `json:"adapter"`
		Position int    `json:"position"` // from the device up, from 0
		Filter
	}
	// FilterList answers GET /v1/filters.
	FilterList struct {
		Filters []FilterOn `json:"filters"`
	}
	// RouteSettings is the body of POST /v1/routes/add and …/delete: a [[route]].
	RouteSettings struct {
		To        string `json:"to"` // a prefix, or "default"
		Via       string `json:"via"`
		Interface string `json:"interface"`
		Metric    uint32 `json:"metric"`
	}
	// Count says how many a command has met.
	Count struct {
		Count int `json:"count"`
	}
	// ApplyRequest is the body of POST /v1/config/apply.
	ApplyRequest struct {
		TOML   string `json:"toml"` // a whole configuration
		DryRun bool   `json:"dry_run"`
	}
)

// Plan is what a change of configuration takes, in order.
type Plan struct {
	Steps   []PlanStep `json:"steps"`
	Refused []string   `json:"refused"` // what only a restart of the process can change; then nothing is done
	Applied bool       `json:"applied"` // false for a dry run
}

// PlanStep is one step of a Plan.
type PlanStep struct {
	Op       string   `json:"op"`       // "add", "remove", "restart", "update", "move"
	Kind     string   `json:"kind"`     // "adapter", "filter", "bundle", "bridge", "interface", "route" …
	Name     string   `json:"name"`     // "" for what there is only one of
	On       string   `json:"on"`       // of a filter its adapter, of a port its bridge
	Text     string   `json:"text"`     // the step in words
	Changes  []string `json:"changes"`  // keys that differ: "mtu 1500 -> 9000"
	Disrupts []string `json:"disrupts"` // who loses frames or connections by it
}

// Bridge is one bridge.
type Bridge struct {
	Name     string       `json:"name"`
	MAC      string       `json:"mac"`
	VLAN     int          `json:"vlan"` // of the bridge's own adapter; 0: it does not look at VLANs
	Snooping bool         `json:"snooping"`
	Querier  bool         `json:"querier"` // one was heard: group frames are pruned
	Ports    []BridgePort `json:"ports"`
	Groups   []Group      `json:"groups"`
}

// BridgePort is one port of a bridge.
type BridgePort struct {
	Name      string `json:"name"`
	State     string `json:"state"`  // "forwarding", "down", "shut" by the loop guard
	Access    int    `json:"access"` // VLAN of an access port, 0 for a trunk
	Trunk     string `json:"trunk"`  // "10,20-29"
	Native    int    `json:"native"`
	Addresses int    `json:"addresses"` // learned
	MACLimit  int    `json:"mac_limit"` // 0: none of its own
	Router    bool   `json:"router"`    // a multicast router is behind it

	Refused      uint64 `json:"mac_limit_refused"`  // frames of stations beyond mac_limit
	Storm        Storm  `json:"storm"`              // limits in frames/s, 0: none
	StormDropped Storm  `json:"storm_dropped"`      // frames over them
	Reopens      int    `json:"reopens_in_seconds"` // of a port that is shut
}

// Storm is one number for each kind of frame that goes to many ports.
type Storm struct {
	Broadcast uint64 `json:"broadcast"`
	Multicast uint64 `json:"multicast"`
	Unknown   uint64 `json:"unknown"` // unicast to an address that is not known
}

// Group is one multicast group that somebody listens to.
type Group struct {
	Address string   `json:"address"`
	VLAN    int      `json:"vlan"`
	Ports   []string `json:"ports"`
}

// BridgeList answers GET /v1/bridges.
type BridgeList struct {
	Bridges []Bridge `json:"bridges"`
}

// NATFlow is one translated flow: its first packet as it came, and what answers it
// as that comes. An ICMP query has its identifier as the port of who asks, and its
// type as the other one; protocols without ports have 0.
type NATFlow struct {
	Interface        string `json:"interface"` // whose address stands for another one
	Protocol         string `json:"protocol"`  // "tcp", "udp", "icmp", "icmpv6", or a number
	Kind             string `json:"kind"`      // "masquerade", "forward", "hairpin", "local", "through"
	State            string `json:"state"`
	Source           string `json:"source"`
	Destination      string `json:"destination"`
	ReplySource      string `json:"reply_source"`
	ReplyDestination string `json:"reply_destination"`
	Packets          uint64 `json:"packets"`
	Bytes            uint64 `json:"bytes"`
	BackPackets      uint64 `json:"back_packets"`
	BackBytes        uint64 `json:"back_bytes"`
	AgeSeconds       int    `json:"age_seconds"`
	ExpiresSeconds   int    `json:"expires_seconds"`
}

// NATTable answers GET /v1/nat.
type NATTable struct {
	Flows []NATFlow `json:"flows"`
	Total int       `json:"total"` // all that match, listed or not
	Used  int       `json:"used"`  // all that there are
	Limit int       `json:"limit"` // as many as there may be
}

// NATMatch chooses translated flows: all that has every part that is set.
type NATMatch struct {
	Address   string `json:"address"`   // address or prefix of anybody who takes part
	Interface string `json:"interface"` // of the router, or the bundle, bridge or adapter that it stands on or is bound to
	Protocol  string `json:"protocol"`  // "tcp", "udp", "icmp", "icmpv6", or a number
}

// FaultSettings is the body of POST /v1/faults.
type FaultSettings struct {
	Kind      string            `json:"kind"`
	On        string            `json:"on"`        // adapter
	Direction string            `json:"direction"` // "rx", "tx", "both"; "" means both
	For       string            `json:"for"`       // with its unit: "30s"; "" means the longest lease
	Seed      uint64            `json:"seed"`      // 0: chosen, and told
	Owner     string            `json:"owner"`     // "": the caller's user and process
	Params    map[string]string `json:"params"`
}

// Fault is a fault in force.
type Fault struct {
	ID        uint64            `json:"id"`
	Kind      string            `json:"kind"`
	On        string            `json:"on"`
	Direction string            `json:"direction"`
	Params    map[string]string `json:"params"`
	Seed      uint64            `json:"seed"`
	Owner     string            `json:"owner"`
	Began     time.Time         `json:"began"`
	Ends      time.Time         `json:"ends"`
	Hits      uint64            `json:"hits"` // frames, or calls, that it met
}

// FaultEnd is the second line of an attached injection.
type FaultEnd struct {
	End string `json:"end"`
}

// Why an attached fault ends, besides EndStopped.
const (
	EndExpired = "expired" // its time was up
	EndCleared = "cleared" // by a command, or with its adapter
	EndUnknown = "unknown" // the events that would tell are lost
)

// FaultMatch chooses faults. All of them only with All.
type FaultMatch struct {
	ID    uint64 `json:"id"`
	On    string `json:"on"`
	Owner string `json:"owner"`
	All   bool   `json:"all"`
}

// FaultList answers GET /v1/faults.
type FaultList struct {
	Faults []Fault `json:"faults"`
}

// FaultKind is one kind of fault and what can be said about it.
type FaultKind struct {
	Kind   string       `json:"kind"`
	Help   string       `json:"help"`
	Device bool         `json:"device"` // of the device, not of frames: it has no direction
	Params []FaultParam `json:"params"`
	OneOf  []string     `json:"one_of"` // exactly one of these parameters has to be given
}

// FaultParam is one parameter of a kind of fault.
type FaultParam struct {
	Name     string   `json:"name"`
	Unit     string   `json:"unit"`
	Default  string   `json:"default"`
	Required bool     `json:"required"`
	Range    string   `json:"range"`           // "" for what is no number
	Words    []string `json:"words,omitempty"` // all that there are, for a word
	Help     string   `json:"help"`
}

// FaultKindList answers GET /v1/faults/kinds.
type FaultKindList struct {
	Kinds []FaultKind `json:"kinds"`
}

// command reads the body of a command and has it carried out.
func command[T any](r *request, do func(ctx context.Context, body T) error) (any, *Error) {
	var body T
	if fail := r.decode(&body); fail != nil {
		return nil, fail
	}
	if err := do(r.Context(), body); err != nil {
		return nil, errorFrom(err)
	}
	return Done{true}, nil
}

// names checks what a body names.
func names(required bool, list ...string) error {
	for _, n := range list {
		switch {
		case n == "" && required:
			return badRequest("", "a name is missing")
		case len(n) > maxNameBytes:
			return badRequest("", "the name has more than %d bytes", maxNameBytes)
		}
	}
	return nil
}

func (s *Server) operate(r *request, op AdapterOp) (any, *Error) {
	return command(r, func(ctx context.Context, body OperateRequest) error {
		switch {
		case len(body.Why) > maxWhyBytes:
			return badRequest("", "why has more than %d bytes", maxWhyBytes)
		case body.Force && op != OpRemove:
			return badRequest("", "force is for remove")
		case body.Why == "":
			body.Why = string(op) + " on request"
		}
		return s.sw.Operate(ctx, op, r.name, body.Why, body.Force)
	})
}

func (s *Server) addAdapter(r *request) (any, *Error) {
	return command(r, func(ctx context.Context, body AdapterSettings) error {
		if err := names(true, body.Name, body.Driver); err != nil {
			return err
		}
		for k, v := range body.Settings {
			var err error
			if body.Settings[k], err = setting(v); err != nil {
				return badRequest("", "settings: %s: %v", quote(k), err)
			}
		}
		return s.sw.AddAdapter(ctx, body)
	})
}

// setting makes of a value in a JSON body what TOML has for it: numbers without a
// fraction are integers, and there is no null.
func setting(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case nil:
		return nil, errors.New("null is no value")
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i, nil
		}
		return v.Float64()
	case []any:
		for i := range v {
			if v[i], err = setting(v[i]); err != nil {
				break
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = setting(v[k]); err != nil {
				break
			}
		}
	}
	return v, err
}

func (s *Server) filters(r *request) (any, *Error) {
	infos, err := s.sw.Adapters(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	list := FilterList{[]FilterOn{}}
	for _, a := range infos {
		for i, f := range a.Filters {
			list.Filters = append(list.Filters, FilterOn{a.Name, i, Filter{f.Name, f.State.String(), f.Mandatory}})
		}
	}
	return list, nil
}

func (s *Server) insertFilter(r *request) (any, *Error) {
	return command(r, func(ctx context.Context, body FilterRequest) error {
		if err := names(true, body.Adapter, body.Filter); err != nil {
			return err
		}
		at := -1
		if body.At != nil {
			at = *body.At
			if at < 0 {
				return badRequest("left out, it is the top", "at: %d is no position: they begin with 0, next to the device", at)
			}
		}
		return s.sw.InsertFilter(ctx, body.Adapter, body.Filter, at)
	})
}

func (s *Server) removeFilter(r *request) (any, *Error) {
	return command(r, func(ctx context.Context, body FilterRequest) error {
		if err := names(true, body.Adapter, body.Filter); err != nil {
			return err
		}
		if body.At != nil {
			return badRequest("", "at is for insert")
		}
		return s.sw.RemoveFilter(ctx, body.Adapter, body.Filter)
	})
}

func (s *Server) addRoute(r *request) (any, *Error)    { return changeRoute(r, s.sw.AddRoute) }
func (s *Server) deleteRoute(r *request) (any, *Error) { return changeRoute(r, s.sw.DeleteRoute) }

func changeRoute(r *request, do func(context.Context, RouteSettings) error) (any, *Error) {
	return command(r, func(ctx context.Context, body RouteSettings) error {
		if body.To == "" {
			return badRequest(`"to" is a prefix such as "203.0.113.0/24", or "default"`, "where does the route lead to?")
		}
		if err := names(false, body.To, body.Via, body.Interface); err != nil {
			return err
		}
		return do(ctx, body)
	})
}

func (m NATMatch) check() error {
	return names(false, m.Interface, m.Address, m.Protocol)
}

func (s *Server) nat(r *request) (any, *Error) {
	limit := MaxNATFlows
	if text := r.query.Get("limit"); r.query.Has("limit") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > MaxNATFlows {
			return nil, badRequest("address, interface and protocol choose among them", "limit: %s is not within 0..%d: one answer lists no more flows", quote(text), MaxNATFlows)
		}
		if n > 0 {
			limit = n
		}
	}
	match := NATMatch{Address: r.query.Get("address"), Interface: r.query.Get("interface"), Protocol: r.query.Get("protocol")}
	if err := match.check(); err != nil {
		return nil, errorFrom(err)
	}
	table, err := s.sw.NAT(r.Context(), match, limit)
	if err != nil {
		return nil, errorFrom(err)
	}
	table.Flows = each(table.Flows, func(f NATFlow) NATFlow { return f })
	return table, nil
}

func (s *Server) flushNAT(r *request) (any, *Error) {
	var match NATMatch
	if fail := r.decode(&match); fail != nil {
		return nil, fail
	}
	if err := match.check(); err != nil {
		return nil, errorFrom(err)
	}
	n, err := s.sw.FlushNAT(r.Context(), match)
	if err != nil {
		return nil, errorFrom(err)
	}
	return Count{n}, nil
}

func (s *Server) faults(r *request) (any, *Error) {
	faults, err := s.sw.Faults(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	return FaultList{each(faults, wireFault)}, nil
}

func (s *Server) faultKinds(*request) (any, *Error) {
	return FaultKindList{each(s.sw.FaultKinds(), func(k FaultKind) FaultKind {
		k.Params = each(k.Params, func(p FaultParam) FaultParam { return p })
		k.OneOf = each(k.OneOf, func(s string) string { return s })
		return k
	})}, nil
}

func wireFault(f Fault) Fault {
	if f.Params == nil {
		f.Params = map[string]string{}
	}
	return f
}

func wireBridge(b Bridge) Bridge {
	b.Ports = each(b.Ports, func(p BridgePort) BridgePort { return p })
	b.Groups = each(b.Groups, func(g Group) Group {
		g.Ports = each(g.Ports, func(p string) string { return p })
		return g
	})
	return b
}

func (s *Server) clearFaults(r *request) (any, *Error) {
	var match FaultMatch
	if fail := r.decode(&match); fail != nil {
		return nil, fail
	}
	if !match.All && match.ID == 0 && match.On == "" && match.Owner == "" {
		return nil, badRequest(`say id, on or owner; {"all": true} ends every fault`, "which faults?")
	}
	if err := names(false, match.On, match.Owner); err != nil {
		return nil, errorFrom(err)
	}
	n, err := s.sw.ClearFaults(r.Context(), match)
	if err != nil {
		return nil, errorFrom(err)
	}
	return Count{n}, nil
}

// inject begins a fault. With "attached" the answer stays open: the fault ends
// when its owner hangs up, and the owner hears when it ends otherwise.
func (s *Server) inject(w http.ResponseWriter, r *request) *Error {
	attached := false
	switch text := r.query.Get("attached"); {
	case !r.query.Has("attached"), text == "false":
	case text == "true":
		attached = true
	default:
		return badRequest("", "attached: %s is neither true nor false", quote(text))
	}
	var body FaultSettings
	if fail := r.decode(&body); fail != nil {
		return fail
	}
	if err := names(true, body.Kind, body.On); err != nil {
		return errorFrom(err)
	}
	if err := names(false, body.Owner, body.Direction, body.For); err != nil {
		return errorFrom(err)
	}
	if attached && s.followers.Add(1) > s.limits.followers {
		s.followers.Add(-1)
		return &Error{http.StatusServiceUnavailable, CodeBusy, fmt.Sprintf("more than %d followers", s.limits.followers), "end some of them, or inject detached"}
	} else if attached {
		defer s.followers.Add(-1)
	}
	if body.Owner == "" {
		body.Owner = r.caller()
	}
	after := uint64(0) // the newest event: the end of the fault is behind it
	if seen, _, _ := s.sw.Events(0); len(seen) > 0 {
		after = seen[len(seen)-1].Seq
	}
	ctx, cancel := context.WithTimeout(r.Context(), doTimeout)
	fault, err := s.sw.Inject(ctx, body)
	cancel()
	if err != nil {
		return errorFrom(err)
	}
	send := func(v any, deadline time.Duration) bool {
		b, err := json.Marshal(v)
		if err != nil {
			panic(http.ErrAbortHandler) // strings, numbers and times
		}
		c := http.NewResponseController(w)
		if deadline > 0 {
			_ = c.SetWriteDeadline(time.Now().Add(deadline))
		}
		if _, err := w.Write(append(b, '\n')); err != nil {
			return false
		}
		return c.Flush() == nil
	}
	if !attached {
		w.Header().Set("Content-Type", jsonType)
		send(wireFault(fault), 0)
		return nil
	}
	letGo := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), doTimeout)
		defer cancel()
		_, _ = s.sw.ClearFaults(ctx, FaultMatch{ID: fault.ID})
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
		letGo()
		return errorFrom(fmt.Errorf("inject: %w", err))
	}
	w.Header().Set("Content-Type", ndjsonType)
	w.Header().Set("Connection", "close")
	if !send(wireFault(fault), s.limits.follow) {
		letGo()
		return nil
	}
	for {
		events, lost, more := s.sw.Events(after)
		for _, e := range events {
			after = e.Seq
			if end, ok := faultEnd(e, fault.ID); ok {
				send(FaultEnd{end}, s.limits.follow)
				return nil
			}
		}
		if lost > 0 && !s.inForce(r, fault.ID) { // its end is among the events that nobody knows any more
			send(FaultEnd{EndUnknown}, s.limits.follow)
			return nil
		}
		select {
		case <-more:
		case <-r.Context().Done(): // its owner has hung up
			letGo()
			return nil
		case <-s.stopping:
			letGo()
			send(FaultEnd{EndStopped}, s.limits.follow)
			return nil
		}
	}
}

// caller names whose connection it is.
func (r *request) caller() string {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		return fmt.Sprintf("uid %d, pid %d", c.who.uid, c.who.pid)
	}
	return "unknown"
}

// faultEnd reads the end of fault id from an event: "fault.expired" and the like,
// Why "lease 7: …" or "lease 7 of WHO: …".
func faultEnd(e ndiscore.Event, id uint64) (string, bool) {
	end, ok := strings.CutPrefix(e.What, "fault.")
	if !ok || end != EndExpired && end != EndCleared && end != EndStopped {
		return "", false
	}
	rest, ok := strings.CutPrefix(e.Why, fmt.Sprintf("lease %d", id))
	return end, ok && (strings.HasPrefix(rest, ":") || strings.HasPrefix(rest, " "))
}

// inForce reports whether fault id has not ended yet.
func (s *Server) inForce(r *request, id uint64) bool {
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	faults, err := s.sw.Faults(ctx)
	return err != nil || slices.ContainsFunc(faults, func(f Fault) bool { return f.ID == id })
}

func (s *Server) apply(r *request) (any, *Error) {
	var body ApplyRequest
	if fail := r.decode(&body); fail != nil {
		return nil, fail
	}
	if len(bytes.TrimSpace([]byte(body.TOML))) == 0 {
		return nil, badRequest(`send {"toml": "…"}; a configuration that takes everything away is "[control]"`, "which configuration?")
	}
	plan, err := s.sw.Apply(r.Context(), []byte(body.TOML), body.DryRun)
	if err != nil {
		return nil, errorFrom(err)
	}
	same := func(s string) string { return s }
	plan.Refused = each(plan.Refused, same)
	plan.Steps = each(plan.Steps, func(p PlanStep) PlanStep {
		p.Changes, p.Disrupts = each(p.Changes, same), each(p.Disrupts, same)
		return p
	})
	return plan, nil
}
