package config

import (
	"fmt"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Error is one thing wrong with a configuration file.
type Error struct {
	File       string `json:"file"`
	Line       int    `json:"line"`                 // from 1
	Column     int    `json:"column"`               // in bytes, from 1
	Key        string `json:"key,omitempty"`        // dotted, as it could be written; empty for a syntax error
	Msg        string `json:"message"`              // what is wrong and what would be right
	Suggestion string `json:"suggestion,omitempty"` // what was probably meant
	Source     string `json:"source,omitempty"`     // the line, fit for a terminal
}

// Error is one line: file:line:column: key: what is wrong (did you mean …?).
func (e Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", e.File, e.Line, e.Column)
	if e.Key != "" {
		b.WriteString(e.Key)
		b.WriteString(": ")
	}
	b.WriteString(e.Msg)
	if e.Suggestion != "" {
		fmt.Fprintf(&b, " (did you mean %s?)", e.Suggestion)
	}
	return b.String()
}

// Errors is everything wrong with a file, in the order of the file. It is what
// Parse and Load return for a file that could be read and may not be used.
type Errors []Error

// Error is one line for each error.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the errors one by one.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}

// Detail is Error with the source line and a mark under each error, for people
// at a terminal.
func (es Errors) Detail() string {
	var b strings.Builder
	for _, e := range es {
		b.WriteString(e.Error())
		b.WriteByte('\n')
		if strings.TrimSpace(e.Source) == "" {
			continue
		}
		fmt.Fprintf(&b, "    %s\n", e.Source)
		if pad, ok := underline(e.Source, e.Column); ok {
			fmt.Fprintf(&b, "    %s^\n", pad)
		}
	}
	return b.String()
}

// underline is the blank that leads to column of line; tabs stay tabs, so that
// the mark stands right whatever their width.
func underline(line string, column int) (string, bool) {
	if column < 1 || column > len(line)+1 {
		return "", false
	}
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, line[:column-1]), true
}

func (es Errors) sort() {
	sort.SliceStable(es, func(i, j int) bool {
		a, b := es[i], es[j]
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		return a.Column < b.Column
	})
}

// sourceBytes is how much of a line an error quotes.
const sourceBytes = 160

// printable makes one line of a file fit for a terminal: a file may hold bytes
// that would move the cursor. Every byte replaced stays one column wide.
func printable(line []byte) string {
	if len(line) > sourceBytes {
		line = line[:sourceBytes]
	}
	var b strings.Builder
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		switch {
		case r == '\t', unicode.IsPrint(r) && (r != utf8.RuneError || n > 1):
			b.Write(line[:n])
		case string(line) == "\r":
		default:
			b.WriteString(strings.Repeat("?", n))
		}
		line = line[n:]
	}
	return b.String()
}
