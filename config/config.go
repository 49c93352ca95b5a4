package config

import (
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"strconv"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Limits of a configuration file.
const (
	MaxBytes = 1 << 20
	MaxKeys  = 10_000 // keys, table headers and list elements
)

// Config is a configuration that was checked whole: every name in it exists,
// every address is usable, every default is filled in.
type Config struct {
	Control    Control     `json:"control"`
	Log        Log         `json:"log"`
	Filters    []Filter    `json:"filters"`
	Adapters   []Adapter   `json:"adapters"`
	Bundles    []Bundle    `json:"bundles"`
	Bridges    []Bridge    `json:"bridges"`
	Interfaces []Interface `json:"interfaces"`
	Routes     []Route     `json:"routes"`
	Forwards   []Forward   `json:"forwards"`
	NAT        NAT         `json:"nat"`
	Fault      Fault       `json:"fault"`

	blank bool
}

// Blank reports whether the text had neither a table nor a key: a file that was
// cut off, or is just being written, rather than one that takes everything away.
func (c *Config) Blank() bool { return c.blank }

// Control is the section [control]: the unix socket of the control API.
type Control struct {
	// Socket is the path; "" is chosen at start: /run/vswitch/control.sock as
	// root, otherwise $XDG_RUNTIME_DIR/vswitch/control.sock.
	Socket string `toml:"socket" json:"socket"`
	// Mode is the socket's mode in octal. The default is 0600, and 0660 when
	// there is a group.
	Mode string `toml:"mode" json:"mode"`
	// Group owns the socket and may use it; "" means the owner alone.
	Group string `toml:"group" json:"group"`
}

// FileMode is Mode as a number.
func (c Control) FileMode() fs.FileMode {
	n, err := strconv.ParseUint(c.Mode, 8, 9)
	if err != nil {
		return 0o600
	}
	return fs.FileMode(n)
}

// Log is the section [log].
type Log struct {
	Level  string `toml:"level" json:"level" oneof:"debug,info,warn,error"`
	Format string `toml:"format" json:"format" oneof:"console,json"`
}

// Filter is one [filter.NAME]. Each adapter that lists it gets a module of its
// own.
type Filter struct {
	Name   string
	Driver string
	// Options is what the driver's NewOptions returned, filled in.
	Options any
}

// Adapter is one [adapter.NAME].
type Adapter struct {
	Name    string
	Driver  string
	Filters []string // from the device up
	// Options is what the driver's NewOptions returned, filled in.
	Options any
}

// Bundle is one [bundle.NAME]: adapters that stand in for each other. One of mode
// ndis5 has the default of Failback, Hold, UpDelay, DownDelay, MAC and Health.
type Bundle struct {
	Name     string   `json:"name"`
	Members  []string `toml:"members" json:"members"` // adapters, the preferred first
	Mode     string   `toml:"mode" json:"mode" oneof:"team,ndis5"`
	Failback string   `toml:"failback" json:"failback" oneof:"always,better,never"`
	// Balance says who sends: the active member alone, or with "hash" each
	// healthy member its share of the flows.
	Balance string `toml:"balance" json:"balance" oneof:"active-backup,hash"`
	// LAG says of the far end of a bundle that balances by hash that it is a
	// static link aggregate over all members, not one plain switch.
	LAG bool `toml:"lag" json:"lag"`
	// Hold is how long a member that recovered has to stay well before traffic
	// goes back to it.
	Hold      Duration `toml:"hold" json:"hold"`
	UpDelay   Duration `toml:"up_delay" json:"up_delay"`     // how long good news waits
	DownDelay Duration `toml:"down_delay" json:"down_delay"` // how long bad news waits
	// MAC is the team's address: "" for a stable local one, "first" for the
	// first member's, "active" for that of whichever is active, or an address.
	MAC    string `toml:"mac" json:"mac"`
	Health Health `toml:"health" json:"health"`
}

// Health is [bundle.NAME.health]: how a member is found to be failed.
type Health struct {
	Carrier  bool       `toml:"carrier" json:"carrier"`               // link and interface state count
	Probe    string     `toml:"probe" json:"probe" oneof:",neighbor"` // "neighbor": ARP for an IPv4 target, ND for IPv6
	Target   netip.Addr `toml:"target" json:"target"`                 // who answers the probe
	Interval Duration   `toml:"interval" json:"interval"`             // between two probes on a member
}

// Bridge is one [bridge.NAME]: a learning switch.
type Bridge struct {
	Name     string   `json:"name"`
	Ports    []string `toml:"ports" json:"ports"` // adapters or bundles
	MACAge   Duration `toml:"mac_age" json:"mac_age"`
	MACLimit int      `toml:"mac_limit" json:"mac_limit" range:"1..1048576"`
	MAC      string   `toml:"mac" json:"mac"` // the bridge's own address; "" for a stable local one
	// VLAN is that of the bridge's own adapter; 0: the bridge does not look at
	// VLANs, and no port may.
	VLAN      int      `toml:"vlan" json:"vlan" range:"0..4094"`
	Snooping  bool     `toml:"snooping" json:"snooping"`     // IGMP and MLD: group frames only where someone listens
	LoopGuard bool     `toml:"loop_guard" json:"loop_guard"` // shut a port that brings our own frames back
	LoopHold  Duration `toml:"loop_hold" json:"loop_hold"`   // how long such a port stays shut
	// PortOptions are the [bridge.NAME.port.PORT] that there are, in the order
	// of Ports.
	PortOptions []BridgePort `json:"port_options"`
}

// Port is what holds for a port of the bridge, with a table of its own or not.
func (b *Bridge) Port(name string) BridgePort {
	for _, p := range b.PortOptions {
		if p.Name == name {
			return p
		}
	}
	return BridgePort{Name: name}
}

// BridgePort is one [bridge.NAME.port.PORT]. On a bridge that looks at VLANs a
// port has either Access or Trunk; with neither its VLAN is the bridge's.
type BridgePort struct {
	Name           string      `json:"name"`                                                         // of the adapter or bundle
	Access         int         `toml:"access" json:"access" range:"0..4094"`                         // VLAN of its frames, which have no tag
	Trunk          []VLANRange `toml:"trunk" json:"trunk"`                                           // VLANs of its frames, which have a tag; sorted
	Native         int         `toml:"native" json:"native" range:"0..4094"`                         // of a trunk: VLAN of frames without a tag; 0: none
	MACLimit       int         `toml:"mac_limit" json:"mac_limit" range:"0..1048576"`                // 0: the bridge's own
	StormBroadcast int         `toml:"storm_broadcast" json:"storm_broadcast" range:"0..1000000000"` // frames/s let through; 0: all
	StormMulticast int         `toml:"storm_multicast" json:"storm_multicast" range:"0..1000000000"` // the same of group frames
	StormUnknown   int         `toml:"storm_unknown" json:"storm_unknown" range:"0..1000000000"`     // the same of unicast to an address not learned
}

// Interface is one [interface.NAME]: the router's foot in a network.
type Interface struct {
	Name      string         `json:"name"`
	On        string         `toml:"on" json:"on"` // an adapter, bundle or bridge
	Addresses []netip.Prefix `toml:"addresses" json:"addresses"`
	MTU       int            `toml:"mtu" json:"mtu"` // bytes of layer-3 packet; 0: of what it is on
	// What leaves by this interface leaves with its address.
	Masquerade  bool `toml:"masquerade" json:"masquerade"`   // IPv4
	Masquerade6 bool `toml:"masquerade6" json:"masquerade6"` // IPv6
}

// Route is one [[route]].
type Route struct {
	To        netip.Prefix `json:"to"`
	Via       netip.Addr   `json:"via"`
	Interface string       `json:"interface"` // always filled in
	Metric    uint32       `json:"metric"`    // the lowest wins
}

// String is the route as people write it.
func (r Route) String() string {
	s := fmt.Sprintf("%s via %s on %s", r.To, r.Via, r.Interface)
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	return s
}

// routeText is a route as it is written.
type routeText struct {
	To        string     `toml:"to"`
	Via       netip.Addr `toml:"via"`
	Interface string     `toml:"interface"`
	Metric    uint32     `toml:"metric"`
}

// Forward is one [[forward]]: a published port. What reaches Interface's own
// address at one of Port goes to To. Both ranges are of one length.
type Forward struct {
	Interface string    `toml:"interface" json:"interface"`
	Protocol  string    `toml:"protocol" json:"protocol" oneof:"tcp,udp"`
	Port      PortRange `toml:"port" json:"port"`
	To        Target    `toml:"to" json:"to"`
}

// String is the forward as people write it.
func (f Forward) String() string {
	return fmt.Sprintf("%s %s at %s to %s", f.Protocol, f.Port, f.Interface, f.To)
}

// NAT is the section [nat]: how much is remembered of translated flows, and how
// long after their last packet.
type NAT struct {
	Flows         int      `toml:"flows" json:"flows" range:"16..4194304"` // at most
	TCP           Duration `toml:"tcp" json:"tcp"`                         // an open connection
	TCPTransitory Duration `toml:"tcp_transitory" json:"tcp_transitory"`   // one that opens or closes
	UDP           Duration `toml:"udp" json:"udp"`                         // and others, until both sides have spoken and the first one again
	UDPStream     Duration `toml:"udp_stream" json:"udp_stream"`           // after that
	ICMP          Duration `toml:"icmp" json:"icmp"`                       // echo
}

// Fault is the section [fault]: whether faults may be injected into the running
// switch. A filter in the file is not an injected one.
type Fault struct {
	Allow   bool     `toml:"allow" json:"allow"`
	Longest Duration `toml:"longest" json:"longest"` // the longest lease of an injected fault
}

// adapterText is what every [adapter.NAME] has, whatever its driver.
type adapterText struct {
	Driver  string   `toml:"driver"`
	Filters []string `toml:"filters"`
}

// filterText is what every [filter.NAME] has, whatever its driver.
type filterText struct {
	Driver string `toml:"driver"`
}

// DeviceKeyer is implemented by options that name a device which only one
// adapter can have. The name of the adapter is an argument, because many
// drivers take it for the device's when the options name none. Two adapters
// with equal keys are refused; "" is equal to nothing. The key is shown to
// people: "interface eth0".
type DeviceKeyer interface{ DeviceKey(adapter string) string }

// Default is what an empty file means.
func Default() *Config {
	return &Config{
		Control: Control{Mode: "0600"},
		Log:     Log{Level: "info", Format: "console"},
		NAT: NAT{
			Flows: 65536,
			// RFC 5382 5 (TCP), RFC 4787 4.3 (UDP) as Linux has it, RFC 5508 3.2 (ICMP).
			TCP: duration("7440s"), TCPTransitory: duration("240s"),
			UDP: duration("30s"), UDPStream: duration("120s"), ICMP: duration("30s"),
		},
		Fault: Fault{Longest: duration("1h")},
	}
}

func defaultBundle() Bundle {
	return Bundle{
		Mode: "team", Failback: "always", Balance: "active-backup", Hold: duration("1s"),
		Health: Health{Carrier: true, Interval: duration("100ms")},
	}
}

func defaultBridge() Bridge {
	return Bridge{
		MACAge: duration("300s"), MACLimit: 8192,
		Snooping: true, LoopGuard: true, LoopHold: duration("30s"),
	}
}

func duration(s string) Duration {
	var d Duration
	if err := d.UnmarshalText([]byte(s)); err != nil {
		panic(err)
	}
	return d
}

// Load reads and checks the file at path. The error is an Errors when the file
// could be read. Without filter drivers no [filter.NAME] can be written.
func Load(path string, drivers []ndiscore.Driver, filters ...ndiscore.FilterDriver) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data, drivers, filters...)
}

// sections are the top-level keys in the order that messages list them.
var sections = []string{
	"control", "log", "filter", "adapter", "bundle", "bridge", "interface", "route", "forward", "nat", "fault",
}

// Parse checks data, the contents of a file called name. The error is an Errors
// unless the drivers themselves are at fault.
func Parse(name string, data []byte, drivers []ndiscore.Driver, filters ...ndiscore.FilterDriver) (*Config, error) {
	known := knownDrivers(drivers, filters)
	if err := known.check(); err != nil {
		return nil, err
	}
	if len(data) > MaxBytes {
		return nil, Errors{{File: name, Line: 1, Column: 1, Msg: fmt.Sprintf("larger than %d bytes", MaxBytes)}}
	}
	r := newReader(name, data)
	var root *table
	root, r.whole = parseDocument(data, r.pos, func(at int, key, format string, args ...any) {
		r.errorAt(at, key, "", format, args...)
	})
	c := Default()
	r.decode(root, c, known)
	c.blank = r.whole && len(root.values) == 0
	if r.whole {
		newChecker(r, c).check()
	}
	if len(r.errs) > 0 {
		r.errs.sort()
		return nil, r.errs
	}
	return c, nil
}

// decode fills c from root.
func (r *reader) decode(root *table, c *Config, known known) {
	for _, key := range root.keys {
		v := root.values[key]
		path := quoteKey(key)
		r.at[path] = v.at
		switch key {
		case "control":
			r.section(v, path, reflect.ValueOf(&c.Control).Elem())
		case "log":
			r.section(v, path, reflect.ValueOf(&c.Log).Elem())
		case "nat":
			r.section(v, path, reflect.ValueOf(&c.NAT).Elem())
		case "fault":
			r.section(v, path, reflect.ValueOf(&c.Fault).Elem())
		case "filter":
			r.named(v, path, func(name, path string, t *table) {
				f := Filter{Name: name}
				f.Driver, f.Options = r.driven(path, t, known.filters, &filterText{})
				c.Filters = append(c.Filters, f)
			})
		case "adapter":
			r.named(v, path, func(name, path string, t *table) {
				a, text := Adapter{Name: name}, adapterText{}
				a.Driver, a.Options = r.driven(path, t, known.adapters, &text)
				a.Filters = text.Filters
				c.Adapters = append(c.Adapters, a)
			})
		case "bundle":
			r.named(v, path, func(name, path string, t *table) {
				b := defaultBundle()
				b.Name = name
				r.structure(t, path, reflect.ValueOf(&b).Elem(), "")
				c.Bundles = append(c.Bundles, b)
			})
		case "bridge":
			r.named(v, path, func(name, path string, t *table) {
				c.Bridges = append(c.Bridges, r.bridge(name, path, t))
			})
		case "interface":
			r.named(v, path, func(name, path string, t *table) {
				i := Interface{Name: name}
				r.structure(t, path, reflect.ValueOf(&i).Elem(), "")
				c.Interfaces = append(c.Interfaces, i)
			})
		case "route":
			r.listed(v, path, func(path string, t *table) { c.Routes = append(c.Routes, r.route(path, t)) })
		case "forward":
			r.listed(v, path, func(path string, t *table) {
				f := Forward{}
				r.structure(t, path, reflect.ValueOf(&f).Elem(), "")
				c.Forwards = append(c.Forwards, f)
			})
		default:
			what := "unknown section"
			if v.kind != kindTable && v.kind != kindTables {
				what = "unknown key"
			}
			r.unknown(v.at, path, key, what, sections)
		}
	}
	if c.Control.Group != "" && !r.has("control.mode") {
		c.Control.Mode = "0660"
	}
}

func (r *reader) section(v *value, path string, dst reflect.Value) {
	switch v.kind {
	case kindTable:
		r.structure(v.table, path, dst, "")
	case kindTables:
		r.errorAt(v.at, path, "["+path+"]", "there is only one of this section")
	default:
		r.errorAt(v.at, path, "["+path+"]", "is a section, found %s", v.shown())
	}
}

// named calls each for every table of a section of named tables.
func (r *reader) named(v *value, path string, each func(name, path string, t *table)) {
	if v.kind != kindTable {
		r.errorAt(v.at, path, "["+path+".NAME]", "is a section of named tables, found %s", v.shown())
		return
	}
	for _, name := range v.table.keys {
		e := v.table.values[name]
		p := join(path, name)
		r.at[p] = e.at
		switch e.kind {
		case kindTable:
			each(name, p, e.table)
		case kindTables:
			r.errorAt(e.at, p, "["+p+"]", "names one thing, not a list")
		default:
			r.errorAt(e.at, p, "["+path+".NAME]", "a key needs a table with a name above it, found %s", e.shown())
		}
	}
}

// listed calls each for every table of a section such as [[route]], or of the
// same written as a list of inline tables. It keeps one that is none, empty, so
// that the others keep their numbers.
func (r *reader) listed(v *value, path string, each func(path string, t *table)) {
	if v.kind != kindTables && v.kind != kindArray {
		r.errorAt(v.at, path, "[["+path+"]]", "is a list of tables, found %s", v.shown())
		return
	}
	for i, e := range v.list {
		p := element(path, i)
		r.at[p] = e.at
		if e.kind != kindTable {
			r.errorAt(e.at, p, "", "want a table, found %s", e.shown())
			r.none[p], e.table = true, newTable(inline)
		}
		each(p, e.table)
	}
}

func (r *reader) bridge(name, path string, t *table) Bridge {
	b := defaultBridge()
	b.Name = name
	r.structure(t, path, reflect.ValueOf(&b).Elem(), "", "port")
	if v := t.values["port"]; v != nil {
		r.named(v, join(path, "port"), func(name, path string, t *table) {
			p := BridgePort{Name: name}
			r.structure(t, path, reflect.ValueOf(&p).Elem(), "")
			b.PortOptions = append(b.PortOptions, p)
		})
	}
	return b
}

func (r *reader) route(path string, t *table) Route {
	text := routeText{}
	r.structure(t, path, reflect.ValueOf(&text).Elem(), "")
	route := Route{Via: text.Via, Interface: text.Interface, Metric: text.Metric}
	if to := join(path, "to"); r.has(to) && !r.bad[to] {
		route.To = r.destination(to, text)
	}
	return route
}

// destination reads where a route leads; "default" is everything of the
// family of via.
func (r *reader) destination(path string, text routeText) netip.Prefix {
	if text.To == "default" {
		switch {
		case text.Via.Is4():
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		case text.Via.Is6():
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(text.To)
	switch {
	case err != nil:
		suggestion := ""
		if a, err := netip.ParseAddr(text.To); err == nil && a.Zone() == "" && !a.Is4In6() {
			suggestion = quote(netip.PrefixFrom(a, a.BitLen()).String())
		} else if s := nearest(text.To, []string{"default"}, &r.budget); s != "" {
			suggestion = quote(s)
		}
		r.hint(path, suggestion, `%s is not a prefix such as "203.0.113.0/24", nor "default"`, quote(short(text.To)))
		return netip.Prefix{}
	case p.Addr().Is4In6():
		r.fail(path, "%s: write the IPv4 prefix", quote(text.To))
	case p != p.Masked():
		r.hint(path, quote(p.Masked().String()), "%s has bits set beyond its prefix length", quote(text.To))
	case p.Addr().IsMulticast():
		r.fail(path, "%s: multicast is not routed", p)
	}
	return p
}
