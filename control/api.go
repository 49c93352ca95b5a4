package control

import (
	"context"
	"time"

	"github.com/seed-b14e907b/vswitch/ndiscore"
	"github.com/seed-b14e907b/vswitch/ndiscore/bridge"
	"github.com/seed-b14e907b/vswitch/stack"
)

// Switch is the running switch, as far as it can be asked and told from
// outside. Its methods are called from several goroutines at once.
type Switch interface {
	Version() VersionInfo
	Adapters(ctx context.Context) ([]ndiscore.AdapterInfo, error)
	// Operate carries out one operation on an adapter; force is for OpRemove.
	Operate(ctx context.Context, op AdapterOp, name, why string, force bool) error
	// AddAdapter adds an adapter to the configuration in force, and starts it.
	AddAdapter(ctx context.Context, a AdapterSettings) error
	Bundles(ctx context.Context) ([]ndiscore.BundleInfo, error)
	Promote(ctx context.Context, bundle, member string) error
	// FDB lists what a bridge has learned; "" means every bridge.
	FDB(ctx context.Context, bridge string) ([]bridge.FDBEntry, error)
	// BridgeList tells of every bridge, its ports and the groups heard of.
	BridgeList(ctx context.Context) ([]Bridge, error)
	// InsertFilter and RemoveFilter change the filter chain of an adapter; at -1
	// is the top.
	InsertFilter(ctx context.Context, adapter, filter string, at int) error
	RemoveFilter(ctx context.Context, adapter, filter string) error
	Interfaces(ctx context.Context) ([]stack.InterfaceInfo, error)
	Routes(ctx context.Context) ([]stack.RouteInfo, error)
	Neighbors(ctx context.Context) ([]stack.NeighborInfo, error)
	AddRoute(ctx context.Context, r RouteSettings) error
	DeleteRoute(ctx context.Context, r RouteSettings) error
	// NAT lists at most limit translated flows, of those that match; 0 means all.
	NAT(ctx context.Context, match NATMatch, limit int) (NATTable, error)
	FlushNAT(ctx context.Context, match NATMatch) (int, error)
	// Inject begins a fault that ends with its lease; Faults lists those in
	// force; ClearFaults ends those that match, and says how many.
	Inject(ctx context.Context, f FaultSettings) (Fault, error)
	Faults(ctx context.Context) ([]Fault, error)
	ClearFaults(ctx context.Context, match FaultMatch) (int, error)
	FaultKinds() []FaultKind
	// Apply turns the running switch into what text, a whole configuration,
	// says, or with dryRun only finds out what that would take.
	Apply(ctx context.Context, text []byte, dryRun bool) (Plan, error)
	Stats(ctx context.Context) (Stats, error)
	// Events returns the events numbered above after that are still kept, how
	// many between are lost, and a channel that closes when there are more.
	Events(after uint64) (events []ndiscore.Event, lost uint64, more <-chan struct{})
	// Config is the configuration in force, as TOML.
	Config() []byte
}

// VersionInfo says which program runs, and since when.
type VersionInfo struct {
	Version string    `json:"version"`
	Go      string    `json:"go"`
	Started time.Time `json:"started"`
	Uptime  string    `json:"uptime"` // with its unit: "1h2m3s"
}

// Stats is what has been counted since the start.
type Stats struct {
	Adapters map[string]ndiscore.Counters `json:"adapters"`
	Router   map[string]uint64            `json:"router"`
	Bridges  map[string]map[string]uint64 `json:"bridges"`
}

// The types below are what goes over the wire. They repeat the core's, with
// every word as text, so that the JSON stays when the core changes.

// Link is the state of an adapter's link.
type Link struct {
	Media     string `json:"media"`      // "connected", "disconnected", "unknown"
	SpeedBits uint64 `json:"speed_bits"` // bit/s, 0 when unknown
	Why       string `json:"why"`        // what was seen
}

// Filter is one filter module of an adapter.
type Filter struct {
	Name      string `json:"name"`
	State     string `json:"state"`
	Mandatory bool   `json:"mandatory"`
}

// Binding is one protocol attached to one adapter.
type Binding struct {
	Protocol string `json:"protocol"`
	Adapter  string `json:"adapter"`
	Target   string `json:"target"` // the name under which the protocol asked for it
	State    string `json:"state"`
}

// Adapter is one adapter, physical or virtual.
type Adapter struct {
	Name        string            `json:"name"`
	Driver      string            `json:"driver"` // "team", "bridge" for virtual ones
	Virtual     bool              `json:"virtual"`
	State       string            `json:"state"`     // "running", "paused", "halted" and what lies between
	Oper        string            `json:"oper"`      // RFC 2863: "up", "down", "dormant", "notPresent"
	Cause       string            `json:"cause"`     // of the newest transition
	LastHalt    string            `json:"last_halt"` // "none" if it never was
	Waiting     bool              `json:"waiting"`   // for its device to come back, or with Retrying to be started again
	Retrying    bool              `json:"retrying"`  // its device had come back and did not start
	Quarantined bool              `json:"quarantined"`
	Suspended   bool              `json:"suspended"`
	Health      string            `json:"health"` // "healthy", "resetting", "degraded", "failed"
	Resets      uint64            `json:"resets"` // since it was added
	Device      string            `json:"device"`
	MAC         string            `json:"mac"`
	MTU         int               `json:"mtu"`
	Link        Link              `json:"link"`
	Bundle      string            `json:"bundle"`
	Filters     []Filter          `json:"filters"`
	Bindings    []Binding         `json:"bindings"`
	Counters    ndiscore.Counters `json:"counters"`
}

// Member is one member of a bundle.
type Member struct {
	Adapter string `json:"adapter"`
	Role    string `json:"role"`    // "active", "standby", "down"; of an ndis5 bundle "primary", "secondary", "down"
	Verdict string `json:"verdict"` // "up", "down", "held", "inconclusive"
	State   string `json:"state"`
	Link    Link   `json:"link"`
	Probe   string `json:"probe"`
}

// Bundle is one bundle.
type Bundle struct {
	Name     string   `json:"name"`
	Mode     string   `json:"mode"`     // "team", "ndis5"
	Active   string   `json:"active"`   // "" when no member is usable
	Balance  string   `json:"balance"`  // "active-backup", "hash"
	Failback string   `json:"failback"` // "always", "better", "never"; an ndis5 bundle consults neither this nor Hold
	Hold     string   `json:"hold"`     // with its unit: "1s"
	Members  []Member `json:"members"`  // the preferred first
}

// FDBEntry is one address that a bridge knows.
type FDBEntry struct {
	MAC        string `json:"mac"`
	VLAN       int    `json:"vlan"` // 0 where the bridge does not look at VLANs
	Port       string `json:"port"`
	AgeSeconds int    `json:"age_seconds"` // since a frame from it was seen
	Local      bool   `json:"local"`       // the bridge's own
}

// Interface is one layer-3 interface of the router.
type Interface struct {
	Name      string   `json:"name"`
	On        string   `json:"on"`      // adapter, bundle or bridge, as configured
	Adapter   string   `json:"adapter"` // bound to; "" when it is not
	MAC       string   `json:"mac"`
	MTU       int      `json:"mtu"`
	Addresses []string `json:"addresses"` // with the length of their network
	Up        bool     `json:"up"`        // bound, and its link connected
	Link      Link     `json:"link"`

	Masquerade  bool `json:"masquerade"`  // NAT44 of what leaves by it
	Masquerade6 bool `json:"masquerade6"` // NAT66
}

// Route is one route of the router, alive or not.
type Route struct {
	To        string `json:"to"`
	Via       string `json:"via"` // "" when it is on the link
	Interface string `json:"interface"`
	Metric    int    `json:"metric"`
	Kind      string `json:"kind"` // "connected", "static"
	Alive     bool   `json:"alive"`
	Why       string `json:"why"` // why it is not alive, or not the one that is used
}

// Neighbor is one entry of the router's neighbour tables (ARP and ND).
type Neighbor struct {
	Interface string    `json:"interface"`
	IP        string    `json:"ip"`
	MAC       string    `json:"mac"`
	State     string    `json:"state"` // as RFC 4861, section 7.3.2, names it
	Updated   time.Time `json:"updated"`
}

// Events is a page of the event log.
type Events struct {
	Events []ndiscore.Event `json:"events"`
	Lost   uint64           `json:"lost"` // how many of those asked for are no longer kept
	Last   uint64           `json:"last"` // the newest number seen: ask for those after it next
}

// FollowStart is the first line of a followed event log; then come events.
type FollowStart struct {
	Follow bool   `json:"follow"` // true
	Lost   uint64 `json:"lost"`   // how many of those asked for are no longer kept
}

// FollowEnd is the last line of a followed event log.
type FollowEnd struct {
	End  string `json:"end"`  // EndStopped or EndTooSlow
	Lost uint64 `json:"lost"` // how many events the follower missed
}

// Why a followed event log ends.
const (
	EndStopped = "stopped"  // the switch stops; this was everything
	EndTooSlow = "too slow" // the follower did not keep up, and has lost events
)

// The bodies of answers that are lists, and of commands.
type (
	// AdapterList answers GET /v1/adapters.
	AdapterList struct {
		Adapters []Adapter `json:"adapters"`
	}
	// BundleList answers GET /v1/bundles.
	BundleList struct {
		Bundles []Bundle `json:"bundles"`
	}
	// BindingList answers GET /v1/bindings.
	BindingList struct {
		Bindings []Binding `json:"bindings"`
	}
	// FDB answers GET /v1/fdb.
	FDB struct {
		Entries []FDBEntry `json:"entries"`
	}
	// InterfaceList answers GET /v1/interfaces.
	InterfaceList struct {
		Interfaces []Interface `json:"interfaces"`
	}
	// RouteList answers GET /v1/routes.
	RouteList struct {
		Routes []Route `json:"routes"`
	}
	// NeighborList answers GET /v1/neighbors.
	NeighborList struct {
		Neighbors []Neighbor `json:"neighbors"`
	}
	// PromoteRequest is the body of POST /v1/bundles/NAME/promote.
	PromoteRequest struct {
		Member string `json:"member"`
	}
	// Done answers a command that was carried out.
	Done struct {
		Done bool `json:"done"`
	}
)
