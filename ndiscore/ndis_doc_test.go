package ndiscore

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const ndisDoc = "../docs/ndis.md"

// tests are the names of the Go tests in dir.
func tests(t *testing.T, dir string) (names []string) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Errorf("no tests in %s: %v", dir, err)
	}
	for _, f := range files {
		file, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}

// ids are the numbers of the checklist that a name carries.
var ids = regexp.MustCompile(`(?i)(?:^|_|Test|\d)c(\d\d)`)

func carries(name string) (numbers []string) {
	for rest := name; ; {
		m := ids.FindStringSubmatchIndex(rest)
		if m == nil {
			return numbers
		}
		numbers = append(numbers, rest[m[2]:m[3]])
		rest = rest[m[3]-1:] // the digit before the next one
	}
}

// rule is the name of a rule in a comment, and rulesListed those that the page
// explains.
var rule = regexp.MustCompile(`\b[RSHXKZBPFIOD]-\d+\b|§\d+(?:\.\d+)?`)

func rulesListed(t *testing.T, doc string) (listed []string) {
	_, list, ok := strings.Cut(doc, "\n## Rules\n")
	list, _, _ = strings.Cut(list, "\n## ")
	if !ok {
		t.Fatal("no section Rules")
	}
	for line := range strings.Lines(list) {
		if cells := strings.Split(line, "|"); len(cells) == 4 && rule.MatchString(cells[1]) {
			if id := strings.TrimSpace(cells[1]); slices.Contains(listed, id) || strings.TrimSpace(cells[2]) == "" {
				t.Errorf("rule %s is listed twice, or without a word", id)
			} else {
				listed = append(listed, id)
			}
		}
	}
	return listed
}

// Whoever reads the name of a rule, in the code or in a trace, finds it in
// docs/ndis.md.
func TestRulesDocumented(t *testing.T) {
	doc, err := os.ReadFile(ndisDoc)
	if err != nil {
		t.Fatal(err)
	}
	listed := rulesListed(t, string(doc))
	cited := map[string]bool{}
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch ext := filepath.Ext(path); {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != "..":
			return filepath.SkipDir
		case d.IsDir() || ext != ".go" && (ext != ".txt" || filepath.Dir(path) != filepath.Join("..", "ndiscore", "testdata")):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, id := range rule.FindAllString(string(text), -1) {
			if !cited[id] && !slices.Contains(listed, id) {
				t.Errorf("%s cites %s, which docs/ndis.md does not list", path, id)
			}
			cited[id] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !cited["H-13"] || !cited["P-12"] || !cited["§7.6"] {
		t.Error("nothing was read")
	}
}

// Every row of the contract's checklist is in docs/ndis.md, once, with rules that
// the page lists, and tests that exist and carry its number, or with the reason why there is nothing to be
// tested; and every test that carries a number is in its row.
func TestChecklistDocumented(t *testing.T) {
	doc, err := os.ReadFile(ndisDoc)
	if err != nil {
		t.Fatal(err)
	}
	here := tests(t, ".")
	traces, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range traces {
		here = append(here, strings.TrimSuffix(filepath.Base(f), ".txt"))
	}
	listed := rulesListed(t, string(doc))
	rows := map[string][]string{} // the tests of each id
	for line := range strings.Lines(string(doc)) {
		if !strings.HasPrefix(line, "| C-") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 5 {
			t.Errorf("%d cells: %s", len(cells), line)
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		id := strings.TrimPrefix(cells[0], "C-")
		if _, twice := rows[id]; twice {
			t.Errorf("C-%s has two rows", id)
		}
		rows[id] = nil
		if cells[1] == "" {
			t.Errorf("C-%s names no rule", id)
		}
		for _, r := range strings.Fields(cells[1]) {
			if !slices.Contains(listed, r) {
				t.Errorf("C-%s: there is no rule %s in the list", id, r)
			}
		}
		if cells[2] == "—" {
			if cells[4] == "" {
				t.Errorf("C-%s has neither a test nor a reason", id)
			}
			continue
		}
		if cells[3] == "" {
			t.Errorf("C-%s does not say what is tested", id)
		}
		for _, name := range strings.Split(cells[2], ", ") {
			name = strings.Trim(name, "`")
			rows[id] = append(rows[id], name)
			if dir, other, ok := strings.Cut(name, ":"); ok {
				if !slices.Contains(tests(t, "../"+dir), other) {
					t.Errorf("C-%s: %s does not exist", id, name)
				}
				continue
			}
			if !slices.Contains(here, name) {
				t.Errorf("C-%s: %s does not exist", id, name)
			}
			if !slices.Contains(carries(name), id) {
				t.Errorf("C-%s: %s does not carry that number", id, name)
			}
		}
	}
	for i := 1; i <= 99; i++ {
		if _, ok := rows[fmt.Sprintf("%02d", i)]; !ok {
			t.Errorf("C-%02d has no row", i)
		}
	}
	if len(rows) != 99 {
		t.Errorf("%d rows", len(rows))
	}
	for _, name := range here {
		for _, id := range carries(name) {
			if !slices.Contains(rows[id], name) {
				t.Errorf("%s is not in the row of C-%s", name, id)
			}
		}
	}
}

// The page names every OID as the table has it, and every event.
func TestNDISPage(t *testing.T) {
	doc, err := os.ReadFile(ndisDoc)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range oidTable {
		qs, who := "", "adapter"
		switch {
		case r.query && r.set:
			qs = "Q/S"
		case r.query:
			qs = "Q"
		default:
			qs = "S"
		}
		if core := r.answer != nil || r.id == OIDGenSupportedList; core && r.set {
			who = "core / adapter"
		} else if core {
			who = "core"
		}
		row := fmt.Sprintf("\n| `0x%08X` | %s | %s | %s | ", uint32(r.id), r.name, qs, who)
		if !strings.Contains(string(doc), row) {
			t.Errorf("no row %q", row[1:])
		}
	}
	for ev := EventPause; int(ev) < len(netEventNames); ev++ {
		if !strings.Contains(string(doc), "`"+ev.String()+"`") {
			t.Errorf("nothing about the event %s", ev)
		}
	}
	for h := HaltDeviceDisabled; h.String() != "invalid"; h++ {
		if !strings.Contains(string(doc), "\n| `"+h.String()+"` | ") {
			t.Errorf("nothing about the halt action %s", h)
		}
	}
}
