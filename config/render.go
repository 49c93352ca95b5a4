package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// TOML writes the configuration with every key, defaults too. Parsed again it
// gives the same configuration.
func (c *Config) TOML() []byte {
	w := &renderer{}
	w.table("control", reflect.ValueOf(c.Control))
	w.table("log", reflect.ValueOf(c.Log))
	for _, f := range c.Filters {
		w.driven(join("filter", f.Name), filterText{f.Driver}, f.Options)
	}
	for _, a := range c.Adapters {
		w.driven(join("adapter", a.Name), adapterText{a.Driver, a.Filters}, a.Options)
	}
	for _, b := range c.Bundles {
		w.table(join("bundle", b.Name), reflect.ValueOf(b))
	}
	for _, b := range c.Bridges {
		w.table(join("bridge", b.Name), reflect.ValueOf(b))
		for _, p := range b.PortOptions {
			w.table(join(join(join("bridge", b.Name), "port"), p.Name), reflect.ValueOf(p))
		}
	}
	for _, i := range c.Interfaces {
		w.table(join("interface", i.Name), reflect.ValueOf(i))
	}
	for _, r := range c.Routes {
		w.open("[[route]]")
		w.fields("route", reflect.ValueOf(routeText{r.To.String(), r.Via, r.Interface, r.Metric}))
	}
	for _, f := range c.Forwards {
		w.open("[[forward]]")
		w.fields("forward", reflect.ValueOf(f))
	}
	w.table("nat", reflect.ValueOf(c.NAT))
	w.table("fault", reflect.ValueOf(c.Fault))
	return w.b.Bytes()
}

type renderer struct{ b bytes.Buffer }

func (w *renderer) open(head string) {
	if w.b.Len() > 0 {
		w.b.WriteByte('\n')
	}
	w.b.WriteString(head + "\n")
}

func (w *renderer) line(key, literal string) {
	fmt.Fprintf(&w.b, "%s = %s\n", quoteKey(key), literal)
}

func (w *renderer) table(path string, v reflect.Value) {
	w.open("[" + path + "]")
	w.fields(path, v)
}

// driven writes a table whose keys depend on its driver: text is what every
// driver has.
func (w *renderer) driven(path string, text, options any) {
	w.open("[" + path + "]")
	w.fields(path, reflect.ValueOf(text))
	if options != nil {
		w.fields(path, reflect.ValueOf(options).Elem())
	}
}

// fields writes the keys of a struct, and then the tables below it, as TOML
// wants it.
func (w *renderer) fields(path string, v reflect.Value) {
	fields := mustFields(v.Type())
	for _, f := range fields {
		if formOf(f.typ) != formTable {
			w.line(f.key, literal(v.FieldByIndex(f.index)))
		}
	}
	for _, f := range fields {
		if formOf(f.typ) == formTable {
			w.table(join(path, f.key), v.FieldByIndex(f.index))
		}
	}
}

// literal is a value as TOML writes it.
func literal(v reflect.Value) string {
	switch formOf(v.Type()) {
	case formBool:
		return strconv.FormatBool(v.Bool())
	case formInt:
		return strconv.FormatInt(v.Int(), 10)
	case formUint:
		return strconv.FormatUint(v.Uint(), 10)
	case formList:
		out := make([]string, v.Len())
		for i := range out {
			out[i] = literal(v.Index(i))
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	return quote(text(v))
}

// text is a value that TOML writes as a string, without the quotes.
func text(v reflect.Value) string {
	switch formOf(v.Type()) {
	case formDuration:
		return Duration(v.Int()).String()
	case formString:
		return v.String()
	}
	b, err := v.Interface().(encoding.TextMarshaler).MarshalText()
	if err != nil {
		panic(fmt.Sprintf("config: write %s: %v", v.Type(), err)) // it was read from text
	}
	return string(b)
}

// MarshalJSON gives the driver's options under their names in config.toml,
// durations with their unit.
func (a Adapter) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Name    string          `json:"name"`
		Driver  string          `json:"driver"`
		Filters []string        `json:"filters"`
		Options json.RawMessage `json:"options"`
	}{a.Name, a.Driver, a.Filters, optionsJSON(a.Options)})
}

// MarshalJSON is that of Adapter.
func (f Filter) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Name    string          `json:"name"`
		Driver  string          `json:"driver"`
		Options json.RawMessage `json:"options"`
	}{f.Name, f.Driver, optionsJSON(f.Options)})
}

func optionsJSON(options any) json.RawMessage {
	if options == nil {
		return json.RawMessage("{}")
	}
	return object(reflect.ValueOf(options).Elem())
}

// object writes a struct as a JSON object in the order of its keys.
func object(v reflect.Value) []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range mustFields(v.Type()) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(encode(f.key))
		b.WriteByte(':')
		b.Write(jsonValue(v.FieldByIndex(f.index)))
	}
	b.WriteByte('}')
	return b.Bytes()
}

func jsonValue(v reflect.Value) []byte {
	switch formOf(v.Type()) {
	case formTable:
		return object(v)
	case formBool, formInt, formUint:
		return []byte(literal(v))
	case formList:
		items := make([][]byte, v.Len())
		for i := range items {
			items[i] = jsonValue(v.Index(i))
		}
		return slices.Concat([]byte("["), bytes.Join(items, []byte(",")), []byte("]"))
	}
	return encode(text(v))
}

func encode(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("config: encode a string: %v", err)) // encoding/json refuses no string
	}
	return b
}

// same reports whether two TOML literals of a kind mean the same: "300s" and
// "5m" do.
func same(a, b string) bool {
	if a == b {
		return true
	}
	ua, err1 := strconv.Unquote(a)
	ub, err2 := strconv.Unquote(b)
	if err1 != nil || err2 != nil {
		return false
	}
	da, err1 := time.ParseDuration(ua)
	db, err2 := time.ParseDuration(ub)
	return err1 == nil && err2 == nil && da == db
}
