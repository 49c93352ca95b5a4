package config

import (
	"reflect"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// KeyDoc is one key that a configuration may hold.
type KeyDoc struct {
	Path     string `json:"path"`             // with NAME for the name of a table: adapter.NAME.driver
	Driver   string `json:"driver,omitempty"` // of an adapter's key: the driver that knows it
	Type     string `json:"type"`             // what it takes, in words
	Default  string `json:"default"`          // as written in TOML; empty for a required key
	Required bool   `json:"required"`
}

// Is reports whether literal, as written in TOML, is the key's default.
func (k KeyDoc) Is(literal string) bool { return !k.Required && same(literal, k.Default) }

// Keys lists every key that Parse knows, in the order of the sections. The
// drivers must be ones that Parse accepts.
func Keys(drivers []ndiscore.Driver) []KeyDoc {
	d := Default()
	var out []KeyDoc
	add := func(path, driver string, v any) { out = append(out, keysBelow(path, driver, reflect.ValueOf(v))...) }
	add("control", "", d.Control)
	add("log", "", d.Log)
	add("adapter.NAME", "", adapterText{})
	for _, driver := range drivers {
		add("adapter.NAME", driver.Name, reflect.ValueOf(driver.NewOptions()).Elem().Interface())
	}
	add("bundle.NAME", "", defaultBundle())
	add("bridge.NAME", "", defaultBridge())
	add("interface.NAME", "", Interface{})
	add("route", "", routeText{})
	return out
}

// required are the keys that Parse asks for when they are missing. Those of a
// driver are between it and its Validate.
var required = map[string]bool{
	"adapter.NAME.driver": true,
	"bundle.NAME.members": true,
	"bridge.NAME.ports":   true,
	"interface.NAME.on":   true,
	"route.to":            true,
	"route.via":           true,
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
