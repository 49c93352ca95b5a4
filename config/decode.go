package config

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// field is one key of a struct.
type field struct {
	key   string
	index []int
	typ   reflect.Type
	oneof []string // of a string: what it may be; nil means anything
	min   int64    // of an integer, when ranged
	max   int64
	limit bool
}

var (
	durationType    = reflect.TypeFor[Duration]()
	stdDurationType = reflect.TypeFor[time.Duration]()
	addrType        = reflect.TypeFor[netip.Addr]()
	prefixType      = reflect.TypeFor[netip.Prefix]()
	unmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
	marshalerType   = reflect.TypeFor[encoding.TextMarshaler]()
)

// form is how a Go type is written.
type form uint8

const (
	formNone form = iota
	formString
	formBool
	formInt
	formUint
	formDuration
	formAddr
	formPrefix
	formText
	formList
	formTable
)

func formOf(t reflect.Type) form {
	switch t {
	case durationType, stdDurationType:
		return formDuration
	case addrType:
		return formAddr
	case prefixType:
		return formPrefix
	}
	if reflect.PointerTo(t).Implements(unmarshalerType) && t.Implements(marshalerType) {
		return formText
	}
	switch t.Kind() {
	case reflect.String:
		return formString
	case reflect.Bool:
		return formBool
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return formInt
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return formUint
	case reflect.Slice:
		switch formOf(t.Elem()) {
		case formNone, formList, formTable:
			return formNone
		}
		return formList
	case reflect.Struct:
		return formTable
	}
	return formNone
}

// fieldsOf lists the keys of a struct in order. An embedded struct without a
// tag counts as its fields.
func fieldsOf(t reflect.Type) ([]field, error) {
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		key, tagged := sf.Tag.Lookup("toml")
		key, _, _ = strings.Cut(key, ",")
		if !tagged && sf.Anonymous && sf.Type.Kind() == reflect.Struct {
			inner, err := fieldsOf(sf.Type)
			if err != nil {
				return nil, err
			}
			for _, f := range inner {
				f.index = append([]int{i}, f.index...)
				out = append(out, f)
			}
			continue
		}
		if key == "" || key == "-" {
			continue
		}
		f := field{key: key, index: []int{i}, typ: sf.Type}
		if !sf.IsExported() || formOf(sf.Type) == formNone {
			return nil, fmt.Errorf("field %s: a key cannot be of type %s", sf.Name, sf.Type)
		}
		if s, ok := sf.Tag.Lookup("oneof"); ok {
			f.oneof = strings.Split(s, ",")
		}
		if s, ok := sf.Tag.Lookup("range"); ok {
			low, high, ok := strings.Cut(s, "..")
			var err1, err2 error
			f.min, err1 = strconv.ParseInt(low, 10, 64)
			f.max, err2 = strconv.ParseInt(high, 10, 64)
			if f.limit = true; !ok || err1 != nil || err2 != nil {
				return nil, fmt.Errorf("field %s: range %q: want LOW..HIGH", sf.Name, s)
			}
		}
		if formOf(sf.Type) == formTable {
			if _, err := fieldsOf(sf.Type); err != nil {
				return nil, fmt.Errorf("field %s: %w", sf.Name, err)
			}
		}
		if slices.ContainsFunc(out, func(o field) bool { return o.key == key }) {
			return nil, fmt.Errorf("field %s: key %q is used twice", sf.Name, key)
		}
		out = append(out, f)
	}
	return out, nil
}

// mustFields is fieldsOf for a type that was looked at before.
func mustFields(t reflect.Type) []field {
	fields, err := fieldsOf(t)
	if err != nil {
		panic(fmt.Sprintf("config: %s: %v", t, err))
	}
	return fields
}

func keysOf(fields []field) []string {
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
	}
	return keys
}

// reader turns the tree into structs, and keeps what the checks need to point
// at the file.
type reader struct {
	file   string
	pos    position
	errs   Errors
	at     map[string]int  // place of each path in the file
	bad    map[string]bool // paths with an error at or below them
	budget int             // comparisons left for suggestions
	whole  bool            // every byte of the file was understood
	none   map[string]bool // elements of a list of tables that are no tables
}

func newReader(file string, data []byte) *reader {
	return &reader{
		file: file, pos: newPosition(data),
		at: map[string]int{}, bad: map[string]bool{}, none: map[string]bool{}, budget: suggestLimit,
	}
}

// errorAt adds an error at a byte offset.
func (r *reader) errorAt(at int, path, suggestion, format string, args ...any) {
	line, column := r.pos.of(at)
	r.errs = append(r.errs, Error{
		File: r.file, Line: line, Column: column, Key: path,
		Msg: fmt.Sprintf(format, args...), Suggestion: suggestion,
		Source: printable(r.pos.source(line)),
	})
	for path != "" {
		r.bad[path] = true
		path = parent(path)
	}
}

// fail adds an error at path, or at the nearest place above it that the file
// has.
func (r *reader) fail(path, format string, args ...any) { r.hint(path, "", format, args...) }

// hint is fail with a suggestion.
func (r *reader) hint(path, suggestion, format string, args ...any) {
	r.errorAt(r.place(path), path, suggestion, format, args...)
}

func (r *reader) place(path string) int {
	for p := path; p != ""; p = parent(p) {
		if at, ok := r.at[p]; ok {
			return at
		}
	}
	return 0
}

// lineOf is the line that a message about another key refers to.
func (r *reader) lineOf(path string) int { return r.pos.line(r.place(path)) }

// has reports whether the file sets path.
func (r *reader) has(path string) bool { _, ok := r.at[path]; return ok }

// parent is the path one step up: of a.b[1], a.b; of a.b, a. A dot inside
// quotes is no step.
func parent(path string) string {
	last, quoted := -1, false
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case (c == '.' || c == '[') && !quoted:
			last = i
		}
	}
	return path[:max(last, 0)]
}

func join(path, key string) string {
	if path == "" {
		return quoteKey(key)
	}
	return path + "." + quoteKey(key)
}

func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// struct fills dst, a struct, from t. Keys listed in skip were read elsewhere;
// what names the thing whose keys these are.
func (r *reader) structure(t *table, path string, dst reflect.Value, what string, skip ...string) {
	fields := mustFields(dst.Type())
	for _, key := range t.keys {
		v := t.values[key]
		p := join(path, key)
		r.at[p] = v.at
		if slices.Contains(skip, key) {
			continue
		}
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		if i < 0 {
			r.unknown(v.at, p, key, "unknown key"+what, append(slices.Clone(skip), keysOf(fields)...))
			continue
		}
		r.set(v, p, dst.FieldByIndex(fields[i].index), fields[i])
	}
}

// unknown reports a name that is none of known.
func (r *reader) unknown(at int, path, name, what string, known []string) {
	if s := nearest(name, known, &r.budget); s != "" {
		r.errorAt(at, path, s, "%s", what)
		return
	}
	r.errorAt(at, path, "", "%s; known: %s", what, strings.Join(known, ", "))
}

// want says what a field takes, for messages and documentation.
func (f field) want() string {
	switch formOf(f.typ) {
	case formString:
		if f.oneof != nil {
			return "one of " + quoteAll(f.oneof)
		}
		return "a string"
	case formBool:
		return "true or false"
	case formInt, formUint:
		if f.limit {
			return fmt.Sprintf("an integer from %d to %d", f.min, f.max)
		}
		return "an integer"
	case formDuration:
		return `a duration such as "300s"`
	case formAddr:
		return `an IP address such as "192.0.2.1"`
	case formPrefix:
		return `an address with prefix length such as "192.0.2.1/24"`
	case formList:
		return "a list"
	case formTable:
		return "a table"
	}
	return "a string"
}

func quoteAll(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = quote(s)
	}
	return strings.Join(out, ", ")
}

// shown is a value as an error names it.
func (v *value) shown() string {
	switch v.kind {
	case kindString:
		return "the string " + quote(short(v.text))
	case kindInteger:
		return "the integer " + short(v.text)
	case kindFloat:
		return "the float " + short(v.text)
	case kindBool:
		return v.text
	}
	return v.kind.String()
}

// short keeps a message on one line whatever the file holds.
func short(s string) string {
	const limit = 64
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}

// set stores v in dst or reports why it cannot be.
func (r *reader) set(v *value, path string, dst reflect.Value, f field) {
	fm := formOf(f.typ)
	switch fm {
	case formTable:
		if v.kind != kindTable {
			r.errorAt(v.at, path, "", "want a table, found %s", v.shown())
			return
		}
		r.structure(v.table, path, dst, "")
		return
	case formList:
		r.setList(v, path, dst, f)
		return
	}
	wanted := kindString
	switch fm {
	case formBool:
		wanted = kindBool
	case formInt, formUint:
		wanted = kindInteger
	}
	if v.kind != wanted {
		suggestion := ""
		switch {
		case fm == formDuration && v.kind == kindInteger:
			suggestion = quote(short(v.text) + "s")
		case fm == formText && v.kind == kindInteger:
			suggestion = quote(short(v.text))
		case wanted == kindInteger && v.kind == kindString && isDecimal(v.text), wanted == kindBool && (v.text == "true" || v.text == "false"):
			suggestion = short(v.text)
		case wanted == kindBool && v.text == "yes", wanted == kindBool && v.text == "on":
			suggestion = "true"
		case wanted == kindBool && v.text == "no", wanted == kindBool && v.text == "off":
			suggestion = "false"
		}
		r.errorAt(v.at, path, suggestion, "want %s, found %s", f.want(), v.shown())
		return
	}
	if err := r.scalar(v, path, dst, f); err != nil {
		r.errorAt(v.at, path, "", "%s", err)
	}
}

func isDecimal(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

func (r *reader) setList(v *value, path string, dst reflect.Value, f field) {
	if v.kind != kindArray {
		suggestion := ""
		if v.kind == kindString {
			suggestion = "[" + quote(short(v.text)) + "]"
		}
		r.errorAt(v.at, path, suggestion, "want a list, found %s", v.shown())
		return
	}
	f.typ = f.typ.Elem()
	list := reflect.MakeSlice(dst.Type(), len(v.list), len(v.list))
	for i, e := range v.list {
		p := element(path, i)
		r.at[p] = e.at
		r.set(e, p, list.Index(i), f)
	}
	if len(v.list) == 0 {
		list = reflect.Zero(dst.Type()) // an empty list is no list, so that one config has one form
	}
	dst.Set(list)
}

// scalar stores a value of the right kind.
func (r *reader) scalar(v *value, path string, dst reflect.Value, f field) error {
	switch formOf(f.typ) {
	case formString:
		if f.oneof != nil && !slices.Contains(f.oneof, v.text) {
			suggestion := nearest(v.text, f.oneof, &r.budget)
			if suggestion != "" {
				suggestion = quote(suggestion)
			}
			r.errorAt(v.at, path, suggestion, "%s is not %s", quote(short(v.text)), f.want())
			return nil
		}
		dst.SetString(v.text)
	case formBool:
		dst.SetBool(v.text == "true")
	case formInt, formUint:
		// Base 0 and underscores are TOML's own spelling: 0x10, 1_000.
		n, err := strconv.ParseInt(v.text, 0, 64)
		switch {
		case err != nil, f.limit && (n < f.min || n > f.max):
			return fmt.Errorf("want %s, found %s", f.want(), short(v.text))
		case formOf(f.typ) == formInt && dst.OverflowInt(n), formOf(f.typ) == formUint && (n < 0 || dst.OverflowUint(uint64(n))):
			return fmt.Errorf("%s is out of range", short(v.text))
		case formOf(f.typ) == formInt:
			dst.SetInt(n)
		default:
			dst.SetUint(uint64(n))
		}
	case formDuration:
		n, err := time.ParseDuration(v.text)
		switch {
		case err != nil && isDecimal(v.text):
			r.errorAt(v.at, path, quote(v.text+"s"), "%s has no unit: want %s", quote(v.text), f.want())
		case err != nil:
			return fmt.Errorf("%s is not %s (units: ns, us, ms, s, m, h)", quote(short(v.text)), f.want())
		case n < 0:
			return fmt.Errorf("%s is negative", quote(short(v.text)))
		default:
			dst.SetInt(int64(n))
		}
	case formAddr:
		return setAddr(v.text, dst, f)
	case formPrefix:
		return r.setPrefix(v, path, dst, f)
	case formText:
		if err := dst.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(v.text)); err != nil {
			return fmt.Errorf("%s: %w", quote(short(v.text)), err)
		}
	}
	return nil
}

func setAddr(text string, dst reflect.Value, f field) error {
	if text == "" {
		dst.SetZero()
		return nil
	}
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return fmt.Errorf("%s is not %s", quote(short(text)), f.want())
	case a.Zone() != "":
		return fmt.Errorf("%s: the zone %s has no meaning here; interfaces have a key of their own", quote(short(text)), quote(short(a.Zone())))
	case a.Is4In6():
		return fmt.Errorf("%s: write the IPv4 address %s", quote(text), a.Unmap())
	}
	dst.Set(reflect.ValueOf(a))
	return nil
}

func (r *reader) setPrefix(v *value, path string, dst reflect.Value, f field) error {
	p, err := netip.ParsePrefix(v.text)
	if err == nil && p.Addr().Is4In6() {
		return fmt.Errorf("%s: write the IPv4 address %s", quote(v.text), p.Addr().Unmap())
	}
	if err == nil {
		dst.Set(reflect.ValueOf(p))
		return nil
	}
	if a, err := netip.ParseAddr(v.text); err == nil && a.Zone() == "" && !a.Is4In6() {
		bits := "/24"
		if a.Is6() {
			bits = "/64"
		}
		r.errorAt(v.at, path, quote(v.text+bits), "%s has no prefix length", quote(v.text))
		return nil
	}
	return fmt.Errorf("%s is not %s", quote(short(v.text)), f.want())
}
