package main

import (
	"fmt"
	"io"
	"strings"
)

// table prints rows in aligned columns. Cells are made fit for a terminal: what
// comes from the kernel or from a file may hold any byte.
type table struct {
	rows  [][]string
	right map[int]bool // columns of numbers
}

// newTable makes a table with a heading; a heading that ends in > stands over a
// column of numbers.
func newTable(heading ...string) *table {
	t := &table{right: map[int]bool{}}
	row := make([]string, len(heading))
	for i, h := range heading {
		if strings.HasSuffix(h, ">") {
			t.right[i] = true
		}
		row[i] = strings.TrimSuffix(h, ">")
	}
	t.rows = append(t.rows, row)
	return t
}

func (t *table) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = plain(fmt.Sprint(c))
	}
	t.rows = append(t.rows, row)
}

func (t *table) print(w io.Writer) {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], len(c))
		}
	}
	for _, row := range t.rows {
		var b strings.Builder
		for i, c := range row {
			if i > 0 {
				b.WriteString("  ")
			}
			pad := strings.Repeat(" ", widths[i]-len(c))
			if t.right[i] {
				b.WriteString(pad + c)
			} else {
				b.WriteString(c + pad)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// list prints names and values below each other.
type list struct{ rows [][2]string }

func (l *list) add(name string, value any) {
	l.rows = append(l.rows, [2]string{name, plain(fmt.Sprint(value))})
}

func (l *list) print(w io.Writer) {
	width := 0
	for _, r := range l.rows {
		width = max(width, len(r[0]))
	}
	for _, r := range l.rows {
		fmt.Fprintf(w, "%-*s  %s\n", width+1, r[0]+":", r[1])
	}
}

// plain is s in printable ASCII, and "-" if there is nothing.
func plain(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// count is "1 fault", "2 faults".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
