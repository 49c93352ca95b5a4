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
	Adapters   []Adapter   `json:"adapters"`
	Bundles    []Bundle    `json:"bundles"`
	Bridges    []Bridge    `json:"bridges"`
	Interfaces []Interface `json:"interfaces"`
	Routes     []Route     `json:"routes"`
}

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

// Adapter is one [adapter.NAME].
type Adapter struct {
	Name   string
	Driver string
	// Options is what the driver's NewOptions returned, filled in.
	Options any
}

// Bundle is one [bundle.NAME]: adapters that stand in for each other.
type Bundle struct {
	Name     string   `json:"name"`
	Members  []string `toml:"members" json:"members"` // adapters, the preferred first
	Mode     string   `toml:"mode" json:"mode" oneof:"team,ndis5"`
	Failback string   `toml:"failback" json:"failback" oneof:"always,better,never"`
	// Hold is how long a member that recovered has to stay well before traffic
	// goes back to it.
	Hold      Duration `toml:"hold" json:"hold"`
	UpDelay   Duration `toml:"up_delay" json:"up_delay"`     // how long good news waits
	DownDelay Duration `toml:"down_delay" json:"down_delay"` // how long bad news waits
	// MAC is the team's address: "" for a stable local one, "first" for the
	// first member's, or an address.
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
}

// Interface is one [interface.NAME]: the router's foot in a network.
type Interface struct {
	Name      string         `json:"name"`
	On        string         `toml:"on" json:"on"` // an adapter, bundle or bridge
	Addresses []netip.Prefix `toml:"addresses" json:"addresses"`
	MTU       int            `toml:"mtu" json:"mtu"` // bytes of layer-3 packet; 0: of what it is on
}

// Route is one [[route]].
type Route struct {
	To        netip.Prefix `json:"to"`
	Via       netip.Addr   `json:"via"`
	Interface string       `json:"interface"` // always filled in
	Metric    uint32       `json:"metric"`    // the lowest wins
}

// routeText is a route as it is written.
type routeText struct {
	To        string     `toml:"to"`
	Via       netip.Addr `toml:"via"`
	Interface string     `toml:"interface"`
	Metric    uint32     `toml:"metric"`
}

// adapterText is what every [adapter.NAME] has, whatever its driver.
type adapterText struct {
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
	}
}

func defaultBundle() Bundle {
	return Bundle{
		Mode: "team", Failback: "always", Hold: duration("1s"),
		Health: Health{Carrier: true, Interval: duration("100ms")},
	}
}

func defaultBridge() Bridge { return Bridge{MACAge: duration("300s"), MACLimit: 8192} }

func duration(s string) Duration {
	var d Duration
	if err := d.UnmarshalText([]byte(s)); err != nil {
		panic(err)
	}
	return d
}

// Load reads and checks the file at path. The error is an Errors when the file
// could be read.
func Load(path string, drivers []ndiscore.Driver) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data, drivers)
}

// sections are the top-level keys in the order that messages list them.
var sections = []string{"control", "log", "adapter", "bundle", "bridge", "interface", "route"}

// Parse checks data, the contents of a file called name. The error is an Errors
// unless the drivers themselves are at fault.
func Parse(name string, data []byte, drivers []ndiscore.Driver) (*Config, error) {
	if err := checkDrivers(drivers); err != nil {
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
	r.decode(root, c, drivers)
	if r.whole {
		newChecker(r, c).check()
	}
	if len(r.errs) > 0 {
		r.errs.sort()
		return nil, r.errs
	}
	return c, nil
}

// checkDrivers finds option structs that could not be read or shown.
func checkDrivers(drivers []ndiscore.Driver) error {
	seen := map[string]bool{}
	for _, d := range drivers {
		if d.Name == "" || seen[d.Name] || d.NewOptions == nil {
			return fmt.Errorf("config: driver %q: needs a name of its own and NewOptions", d.Name)
		}
		seen[d.Name] = true
		v := reflect.ValueOf(d.NewOptions())
		if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
			return fmt.Errorf("config: driver %q: NewOptions returns %s, want a pointer to a struct", d.Name, v.Kind())
		}
		fields, err := fieldsOf(v.Elem().Type())
		if err != nil {
			return fmt.Errorf("config: driver %q: %w", d.Name, err)
		}
		for _, f := range fields {
			if f.key == "driver" {
				return fmt.Errorf(`config: driver %q: the key "driver" is taken`, d.Name)
			}
		}
	}
	return nil
}

// decode fills c from root.
func (r *reader) decode(root *table, c *Config, drivers []ndiscore.Driver) {
	for _, key := range root.keys {
		v := root.values[key]
		path := quoteKey(key)
		r.at[path] = v.at
		switch key {
		case "control":
			r.section(v, path, reflect.ValueOf(&c.Control).Elem())
		case "log":
			r.section(v, path, reflect.ValueOf(&c.Log).Elem())
		case "adapter":
			r.named(v, path, func(name, path string, t *table) {
				c.Adapters = append(c.Adapters, r.adapter(name, path, t, drivers))
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
				b := defaultBridge()
				b.Name = name
				r.structure(t, path, reflect.ValueOf(&b).Elem(), "")
				c.Bridges = append(c.Bridges, b)
			})
		case "interface":
			r.named(v, path, func(name, path string, t *table) {
				i := Interface{Name: name}
				r.structure(t, path, reflect.ValueOf(&i).Elem(), "")
				c.Interfaces = append(c.Interfaces, i)
			})
		case "route":
			r.routes(v, path, c)
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

// adapter reads the driver's name, then everything else by that driver's
// options.
func (r *reader) adapter(name, path string, t *table, drivers []ndiscore.Driver) Adapter {
	a := Adapter{Name: name}
	v := t.values["driver"]
	if v == nil && !r.whole {
		return a // it may be in what could not be read
	}
	if v == nil {
		r.fail(path, "needs the key driver: one of %s", quoteAll(driverNames(drivers)))
		return a
	}
	r.at[join(path, "driver")] = v.at
	text := adapterText{}
	r.set(v, join(path, "driver"), reflect.ValueOf(&text.Driver).Elem(), mustFields(reflect.TypeFor[adapterText]())[0])
	if r.bad[join(path, "driver")] {
		return a
	}
	for _, d := range drivers {
		if d.Name != text.Driver {
			continue
		}
		a.Driver, a.Options = d.Name, d.NewOptions()
		r.structure(t, path, reflect.ValueOf(a.Options).Elem(), fmt.Sprintf(" for driver %s", quote(d.Name)), "driver")
		return a
	}
	suggestion := nearest(text.Driver, driverNames(drivers), &r.budget)
	if suggestion != "" {
		suggestion = quote(suggestion)
	}
	r.hint(join(path, "driver"), suggestion, "unknown driver %s; known: %s", quote(short(text.Driver)), quoteAll(driverNames(drivers)))
	return a
}

func driverNames(drivers []ndiscore.Driver) []string {
	names := make([]string, len(drivers))
	for i, d := range drivers {
		names[i] = d.Name
	}
	return names
}

// routes reads [[route]], or the same as a list of inline tables.
func (r *reader) routes(v *value, path string, c *Config) {
	if v.kind != kindTables && v.kind != kindArray {
		r.errorAt(v.at, path, "[["+path+"]]", "is a list of tables, found %s", v.shown())
		return
	}
	for i, e := range v.list {
		p := element(path, i)
		r.at[p] = e.at
		if e.kind != kindTable {
			r.errorAt(e.at, p, "", "want a table, found %s", e.shown())
			continue
		}
		text := routeText{}
		r.structure(e.table, p, reflect.ValueOf(&text).Elem(), "")
		route := Route{Via: text.Via, Interface: text.Interface, Metric: text.Metric}
		if r.has(join(p, "to")) && !r.bad[join(p, "to")] {
			route.To = r.destination(join(p, "to"), text)
		}
		c.Routes = append(c.Routes, route)
	}
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
