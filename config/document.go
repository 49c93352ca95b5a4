package config

import (
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// kind is what a value is in TOML.
type kind uint8

const (
	kindTable  kind = iota
	kindTables      // [[name]]
	kindString
	kindInteger
	kindFloat
	kindBool
	kindTime
	kindArray
)

// String is the kind with its article, for messages.
func (k kind) String() string {
	switch k {
	case kindTable:
		return "a table"
	case kindTables:
		return "a list of tables"
	case kindString:
		return "a string"
	case kindInteger:
		return "an integer"
	case kindFloat:
		return "a float"
	case kindBool:
		return "a boolean"
	case kindTime:
		return "a date or time"
	case kindArray:
		return "a list"
	}
	return "nothing"
}

// value is one value of the file and the place of its key; in a list, of the
// element.
type value struct {
	kind  kind
	at    int      // byte offset
	text  string   // a string decoded, any other scalar as written
	list  []*value // kindArray, kindTables
	table *table   // kindTable
}

// origin says how a table came to be, which decides who may add to it
// (TOML 1.0.0, "Table" and "Inline Table").
type origin uint8

const (
	implicit origin = iota // [a.b] makes a; [a] may follow once
	header                 // [a]
	dotted                 // a.b = 1 makes a; only more dotted keys may follow
	inline                 // { }; nobody
)

type table struct {
	made   origin
	keys   []string // in the order of the file
	values map[string]*value
}

func newTable(made origin) *table { return &table{made: made, values: map[string]*value{}} }

func (t *table) put(key string, v *value) {
	t.keys = append(t.keys, key)
	t.values[key] = v
}

// position turns byte offsets into lines and columns.
type position struct {
	data  []byte
	lines []int // offset of each line's first byte
}

func newPosition(data []byte) position {
	p := position{data: data, lines: []int{0}}
	for i, c := range data {
		if c == '\n' {
			p.lines = append(p.lines, i+1)
		}
	}
	return p
}

func (p position) line(at int) int {
	return sort.Search(len(p.lines), func(i int) bool { return p.lines[i] > at })
}

func (p position) of(at int) (line, column int) {
	at = max(0, min(at, len(p.data)))
	line = p.line(at)
	return line, at - p.lines[line-1] + 1
}

func (p position) source(line int) []byte {
	end := len(p.data)
	if line < len(p.lines) {
		end = p.lines[line] - 1
	}
	return p.data[p.lines[line-1]:end]
}

// syntaxErrors is how many syntax errors are looked for: after so many the file
// is not TOML, and what follows is guessing.
const syntaxErrors = 20

// Longest key: paths in errors are made of them, and a file may cause as many
// errors as it has keys.
const (
	maxKeyBytes = 64 // of one part
	maxKeyParts = 8
)

// maxNesting is how deep lists and inline tables may nest.
const maxNesting = 8

// resume matches a line at which reading goes on after a syntax error: the
// start of a table or of a key. Anything else may be the rest of a list or text.
var resume = regexp.MustCompile(`(?m)^[ \t]*(?:\[{1,2}[^\[\],={}#]+\]{1,2}[ \t]*(?:#.*)?\r?$|[A-Za-z0-9_."'-]+[ \t]*=)`)

// document builds the tree of a file.
type document struct {
	data    []byte
	parser  unstable.Parser
	base    int // offset of the parser's input in data
	root    *table
	current *table
	path    string // of current, for messages
	count   int
	report  func(at int, key, format string, args ...any)
}

// parseDocument reads data and reports what is not TOML or is said twice. ok
// means that the whole file was understood.
func parseDocument(data []byte, pos position, report func(at int, key, format string, args ...any)) (root *table, ok bool) {
	ok = true
	d := &document{data: data, root: newTable(header), report: func(at int, key, format string, args ...any) {
		ok = false
		report(at, key, format, args...)
	}}
	d.current = d.root
	if string(data[:min(3, len(data))]) == "\ufeff" {
		d.base = 3 // editors leave a byte order mark; it means nothing in UTF-8
	}
	for range syntaxErrors {
		d.parser.Reset(data[d.base:])
		for d.parser.NextExpression() {
			if !d.expression(d.parser.Expression(), pos) {
				return d.root, ok
			}
		}
		err := d.parser.Error()
		if err == nil {
			return d.root, ok
		}
		at := d.base
		var perr *unstable.ParserError
		if errors.As(err, &perr) {
			at = min(max(at, cap(data)-cap(perr.Highlight)), len(data))
		}
		d.report(at, "", "%s", err.Error())
		line := pos.line(at)
		if strings.HasPrefix(strings.TrimLeft(string(pos.source(line)), " \t"), "[") {
			d.current = newTable(header) // keys of a table whose name could not be read
		}
		if line == len(pos.lines) {
			return d.root, ok
		}
		next := resume.FindIndex(data[pos.lines[line]:])
		if next == nil {
			return d.root, ok
		}
		d.base = pos.lines[line] + next[0]
	}
	return d.root, ok
}

// more counts one more key, header or element; false means too many.
func (d *document) more(at int) bool {
	d.count++
	if d.count == MaxKeys+1 {
		d.report(at, "", "more than %d keys, tables and list elements", MaxKeys)
	}
	return d.count <= MaxKeys
}

// part is one part of a dotted key.
type part struct {
	name string
	at   int
}

// key reads a dotted key; nil was reported, and ends the file.
func (d *document) key(n *unstable.Node) []part {
	var parts []part
	for it := n.Key(); it.Next(); {
		k := it.Node()
		at := d.base + int(k.Raw.Offset)
		if len(k.Data) > maxKeyBytes {
			d.report(at, "", "a key has at most %d bytes, found %d", maxKeyBytes, len(k.Data))
			return nil
		}
		if len(parts) == maxKeyParts {
			d.report(at, "", "a dotted key has at most %d parts", maxKeyParts)
			return nil
		}
		parts = append(parts, part{string(k.Data), at})
	}
	return parts
}

func (d *document) expression(n *unstable.Node, pos position) bool {
	switch n.Kind {
	case unstable.Table, unstable.ArrayTable:
		parts := d.key(n)
		if parts == nil || !d.more(parts[0].at) {
			return false
		}
		d.current = d.header(parts, n.Kind == unstable.ArrayTable, pos)
		d.path = joinParts("", parts)
		return true
	case unstable.KeyValue:
		return d.assign(d.current, n, d.path, 0, pos)
	}
	return true
}

// header finds or makes the table that [a.b.c] names. For one that may not be
// made it returns a table that belongs to nothing, so that its keys cause no
// further errors.
func (d *document) header(parts []part, many bool, pos position) *table {
	t := d.root
	for i, p := range parts[:len(parts)-1] {
		v := t.values[p.name]
		if v == nil {
			v = &value{kind: kindTable, at: p.at, table: newTable(implicit)}
			t.put(p.name, v)
		}
		switch {
		case v.kind == kindTables:
			t = v.list[len(v.list)-1].table
		case v.kind == kindTable && v.table.made != inline:
			t = v.table
		default:
			d.report(p.at, joinParts("", parts[:i+1]), "is already %s, set in line %d; no table can be made below it", v.kind, pos.line(v.at))
			return newTable(header)
		}
	}
	p := parts[len(parts)-1]
	v := t.values[p.name]
	switch {
	case many && v == nil:
		v = &value{kind: kindTables, at: p.at}
		t.put(p.name, v)
		fallthrough
	case many && v.kind == kindTables:
		e := &value{kind: kindTable, at: p.at, table: newTable(header)}
		v.list = append(v.list, e)
		return e.table
	case v == nil:
		v = &value{kind: kindTable, at: p.at, table: newTable(header)}
		t.put(p.name, v)
		return v.table
	case !many && v.kind == kindTable && v.table.made == implicit:
		v.table.made = header
		v.at = p.at
		return v.table
	}
	d.report(p.at, joinParts("", parts), "is already defined, as %s in line %d", v.kind, pos.line(v.at))
	return newTable(header)
}

// assign sets one key of t, which may be dotted.
func (d *document) assign(t *table, n *unstable.Node, path string, depth int, pos position) bool {
	parts := d.key(n)
	if parts == nil {
		return false
	}
	last := parts[len(parts)-1]
	for i, p := range parts[:len(parts)-1] {
		if !d.more(p.at) {
			return false
		}
		v := t.values[p.name]
		if v == nil {
			v = &value{kind: kindTable, at: p.at, table: newTable(dotted)}
			t.put(p.name, v)
		}
		if v.kind != kindTable || v.table.made != dotted {
			d.report(p.at, joinParts(path, parts[:i+1]), "is already defined, as %s in line %d", v.kind, pos.line(v.at))
			return true
		}
		t = v.table
	}
	if !d.more(last.at) {
		return false
	}
	v, ok := d.value(n.Value(), last.at, joinParts(path, parts), depth, pos)
	if v == nil {
		return ok
	}
	if old := t.values[last.name]; old != nil {
		d.report(last.at, joinParts(path, parts), "is already defined, as %s in line %d", old.kind, pos.line(old.at))
		return true
	}
	t.put(last.name, v)
	return ok
}

// value converts one value. A nil value was reported; false ends the file.
func (d *document) value(n *unstable.Node, at int, path string, depth int, pos position) (*value, bool) {
	v := &value{at: at, text: string(n.Data)}
	switch n.Kind {
	case unstable.String:
		v.kind = kindString
	case unstable.Integer:
		v.kind = kindInteger
	case unstable.Float:
		v.kind = kindFloat
	case unstable.Bool:
		v.kind = kindBool
	case unstable.Array, unstable.InlineTable:
		if depth == maxNesting {
			d.report(at, path, "lists and tables nest more than %d deep", maxNesting)
			return nil, false
		}
		if n.Kind == unstable.Array {
			return d.array(v, n, path, depth, pos)
		}
		v.kind, v.table = kindTable, newTable(inline)
		for it := n.Children(); it.Next(); {
			if c := it.Node(); c.Kind == unstable.KeyValue && !d.assign(v.table, c, path, depth+1, pos) {
				return nil, false
			}
		}
		v.table.seal()
	default:
		v.kind = kindTime
	}
	return v, true
}

func (d *document) array(v *value, n *unstable.Node, path string, depth int, pos position) (*value, bool) {
	v.kind = kindArray
	for it := n.Children(); it.Next(); {
		c := it.Node()
		if c.Kind == unstable.Comment {
			continue
		}
		at := v.at
		if c.Raw.Length > 0 {
			at = d.base + int(c.Raw.Offset)
		}
		if !d.more(at) {
			return nil, false
		}
		e, ok := d.value(c, at, element(path, len(v.list)), depth+1, pos)
		if !ok {
			return nil, false
		}
		v.list = append(v.list, e)
	}
	return v, true
}

// seal closes the tables that dotted keys made inside an inline table.
func (t *table) seal() {
	t.made = inline
	for _, v := range t.values {
		if v.kind == kindTable {
			v.table.seal()
		}
	}
}

// joinParts is the path of a key below path.
func joinParts(path string, parts []part) string {
	names := make([]string, 0, len(parts)+1)
	if path != "" {
		names = append(names, path)
	}
	for _, p := range parts {
		names = append(names, quoteKey(p.name))
	}
	return strings.Join(names, ".")
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// quoteKey writes a key as TOML does.
func quoteKey(s string) string {
	if bareKey.MatchString(s) {
		return s
	}
	return quote(s)
}

// quote writes s as a basic string of TOML, which is also fit for a terminal.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < 0x20, r >= 0x7f && r < 0xa0, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			// Control characters, and those that turn the direction of text.
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
