package config

import (
	"reflect"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// KeyDoc is one key that a configuration may hold. In its path NAME and PORT
// stand for the names of tables: adapter.NAME.driver.
type KeyDoc struct {
	Path     string `json:"path"`             // dotted
	Driver   string `json:"driver,omitempty"` // of an adapter's or filter's key: the driver that knows it
	Type     string `json:"type"`             // what it takes, in words
	Default  string `json:"default"`          // as written in TOML; empty for a required key
	Required bool   `json:"required"`
}

// Is reports whether literal, as written in TOML, is the key's default.
func (k KeyDoc) Is(literal string) bool { return !k.Required && same(literal, k.Default) }

// Keys lists every key that Parse knows, in the order of the sections. The
// drivers must be ones that Parse accepts.
func Keys(drivers []ndiscore.Driver, filters ...ndiscore.FilterDriver) []KeyDoc {
	d, known := Default(), knownDrivers(drivers, filters)
	var out []KeyDoc
	add := func(path, driver string, v any) { out = append(out, keysBelow(path, driver, reflect.ValueOf(v))...) }
	add("control", "", d.Control)
	add("log", "", d.Log)
	if len(known.filters) > 0 { // without a driver there can be no filter
		add("filter.NAME", "", filterText{})
	}
	for _, driver := range known.filters {
		add("filter.NAME", driver.name, reflect.ValueOf(driver.newOptions()).Elem().Interface())
	}
	add("adapter.NAME", "", adapterText{})
	for _, driver := range known.adapters {
		add("adapter.NAME", driver.name, reflect.ValueOf(driver.newOptions()).Elem().Interface())
	}
	add("bundle.NAME", "", defaultBundle())
	add("bridge.NAME", "", defaultBridge())
	add("bridge.NAME.port.PORT", "", BridgePort{})
	add("interface.NAME", "", Interface{})
	add("route", "", routeText{})
	add("forward", "", Forward{})
	add("nat", "", d.NAT)
	add("fault", "", d.Fault)
	return out
}

// required are the keys that Parse asks for when they are missing. Those of a
// driver are between it and its Validate.
var required = map[string]bool{
	"filter.NAME.driver":  true,
	"adapter.NAME.driver": true,
	"bundle.NAME.members": true,
	"bridge.NAME.ports":   true,
	"interface.NAME.on":   true,
	"route.to":            true,
	"route.via":           true,
	"forward.interface":   true,
	"forward.protocol":    true,
	"forward.port":        true,
	"forward.to":          true,
}

func keysBelow(path, driver string, v reflect.Value) []KeyDoc {
	var out []KeyDoc
	for _, f := range mustFields(v.Type()) {
		p, fv := join(path, f.key), v.FieldByIndex(f.index)
		if formOf(f.typ) == formTable {
			out = append(out, keysBelow(p, driver, fv)...)
			continue
		}
		doc := KeyDoc{Path: p, Driver: driver, Type: f.want(), Default: literal(fv)}
		if driver == "" && required[p] {
			doc.Required, doc.Default = true, ""
		}
		out = append(out, doc)
	}
	return out
}
