package control

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/seed-b14e907b/vswitch/ndiscore/ndistest"
)

// documented is one path of README.md.
type documented struct {
	method, path string
	blocks       map[string][]string // by language
}

var heading = regexp.MustCompile(`^### (GET|POST) (/v1/\S+)$`)

func readme(t testing.TB) []documented {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []documented
	language, block := "", ""
	for s := bufio.NewScanner(strings.NewReader(string(b))); s.Scan(); {
		line := s.Text()
		if m := heading.FindStringSubmatch(line); m != nil {
			all = append(all, documented{m[1], m[2], map[string][]string{}})
		} else if strings.HasPrefix(line, "## ") {
			all = append(all, documented{blocks: map[string][]string{}}) // what follows belongs to no path
		}
		switch {
		case language == "" && strings.HasPrefix(line, "```"):
			language, block = strings.TrimPrefix(line, "```"), ""
		case line == "```":
			if n := len(all); n > 0 {
				all[n-1].blocks[language] = append(all[n-1].blocks[language], block)
			}
			language = ""
		case language != "":
			block += line + "\n"
		}
	}
	return slices.DeleteFunc(all, func(d documented) bool { return d.path == "" })
}

func TestREADMEListsEveryPath(t *testing.T) {
	var written, served []string
	for _, d := range readme(t) {
		written = append(written, d.method+" "+d.path)
	}
	for _, r := range routes() {
		served = append(served, r.method+" "+r.path)
		for _, p := range r.params {
			if !strings.Contains(mustRead(t), "?"+p+"=") {
				t.Errorf("%s: parameter %s is not in README.md", r.path, p)
			}
		}
	}
	slices.Sort(written)
	slices.Sort(served)
	if !slices.Equal(written, served) {
		t.Errorf("README.md has\n%q, the server\n%q", written, served)
	}
}

func mustRead(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestREADMEListsEveryCode(t *testing.T) {
	text := mustRead(t)
	for _, c := range []Code{
		CodeBadRequest, CodeForbidden, CodeNotFound, CodeMethod, CodeConflict, CodeTooLarge, CodeBusy, CodeStopping, CodeTimeout,
		CodeNotSupported, CodeInternal,
	} {
		if !strings.Contains(text, fmt.Sprintf("\n| `%s` |", c)) {
			t.Errorf("%s is not in the table", c)
		}
	}
}

// Every answer has the shape of its example: the same names, the same types. Of a
// command the first example is the body, the second one the answer, unless that
// is Done. What is shown works, in the order in which it is shown.
func TestREADMEExamples(t *testing.T) {
	r := serveFixture(t, nil)
	if _, err := r.Inject(ndistest.Context(t), FaultSettings{Kind: "drop", On: "up1", Params: map[string]string{"chance": "1%"}}); err != nil {
		t.Fatal(err)
	}
	for _, d := range readme(t) {
		t.Run(d.method+" "+d.path, func(t *testing.T) {
			path := d.path
			for before, name := range map[string]string{"/v1/adapters/": "up0", "/v1/bundles/": "wan", "/v1/bridges/": "lan", "/v1/interfaces/": "wan"} {
				if strings.HasPrefix(path, before) {
					path = strings.Replace(path, "{name}", name, 1)
				}
			}
			examples := d.blocks["json"]
			if d.method == http.MethodPost {
				if len(examples) == 0 || len(examples) > 2 {
					t.Fatal("want an example of a body, and of the answer if there is more to it")
				}
				c := dial(t, r.path)
				fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(examples[0]), examples[0])
				resp, body := readResponse(t, c, "POST")
				switch {
				case resp.StatusCode != 200, len(examples) == 1 && body != "{\"done\":true}\n":
					t.Errorf("%s: %s", resp.Status, body)
				case len(examples) == 2:
					likeExample(t, examples[1], strings.NewReader(body))
				}
				return
			}
			resp, err := r.client.do(ndistest.Context(t), "GET", path, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if path == "/v1/config" {
				if resp.Header.Get("Content-Type") != tomlType {
					t.Errorf("type %s", resp.Header.Get("Content-Type"))
				}
				return
			}
			if len(examples) != 1 {
				t.Fatal("want one example of an answer")
			}
			likeExample(t, examples[0], resp.Body)
		})
	}
	// The lines of a followed log, as they are shown.
	for _, d := range readme(t) {
		for _, block := range d.blocks["text"] {
			for line := range strings.Lines(block) {
				if !json.Valid([]byte(line)) {
					t.Errorf("%s: no JSON: %s", d.path, line)
				}
			}
		}
	}
}

func likeExample(t *testing.T, text string, r io.Reader) {
	t.Helper()
	var example, answer any
	if err := json.Unmarshal([]byte(text), &example); err != nil {
		t.Fatalf("the example: %v", err)
	}
	if err := json.NewDecoder(r).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	for _, problem := range sameShape("", "", example, answer) {
		t.Error(problem)
	}
}

// Objects whose names are data, and what may be left out.
var (
	counted  = []string{"rx_dropped", "tx_dropped", "device", "router", "bridges", "lan", "params"}
	optional = []string{"rx_dropped", "tx_dropped", "device", "adapter", "protocol", "from", "to", "why"}
)

func sameShape(path, key string, example, answer any) (problems []string) {
	if fmt.Sprintf("%T", example) != fmt.Sprintf("%T", answer) {
		return []string{fmt.Sprintf("%s: the example has %T, the answer %T", path, example, answer)}
	}
	switch e := example.(type) {
	case []any:
		a := answer.([]any)
		if len(e) == 0 || len(a) == 0 {
			return []string{path + ": an empty list shows nothing"}
		}
		return sameShape(path+"[]", "", e[0], a[0])
	case map[string]any:
		a := answer.(map[string]any)
		if _, isStats := a["up0"]; isStats { // by name: any of them will do
			e, a = map[string]any{"*": e["up0"]}, map[string]any{"*": a["up0"]}
		}
		if slices.Contains(counted, key) {
			return nil
		}
		for _, k := range slices.Sorted(maps.Keys(e)) {
			if _, ok := a[k]; ok {
				problems = append(problems, sameShape(path+"."+k, k, e[k], a[k])...)
			} else if !slices.Contains(optional, k) {
				problems = append(problems, path+"."+k+" is in the example only")
			}
		}
		for k := range a {
			if _, ok := e[k]; !ok && !slices.Contains(optional, k) {
				problems = append(problems, path+"."+k+" is not in the example")
			}
		}
	}
	return problems
}
