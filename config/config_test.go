package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

var update = flag.Bool("update", false, "rewrite the golden files; read the diff before committing it")

// compare lets cmp look at addresses and at the options' unexported fields.
var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.AllowUnexported(wireOptions{}),
	cmpopts.IgnoreUnexported(Config{}), // whether its text said anything
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func globbed(t testing.TB, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("no files at %s (%v)", pattern, err)
	}
	return list
}

// TestBad compares the errors of every file in testdata/bad with the file of
// the same name that ends in .want.
func TestBad(t *testing.T) {
	for _, path := range globbed(t, "testdata/bad/*.toml") {
		name := filepath.Base(path)
		t.Run(strings.TrimSuffix(name, ".toml"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse(name, data, testDrivers(), testFilters()...)
			if err == nil || c != nil {
				t.Fatalf("Parse accepted it: %v", c)
			}
			golden(t, strings.TrimSuffix(path, ".toml")+".want", []byte(err.Error()+"\n"))
		})
	}
}

// TestGood compares what every file in testdata/good means, in TOML and in
// JSON, with the golden files beside it.
func TestGood(t *testing.T) {
	for _, path := range globbed(t, "testdata/good/*.toml") {
		name := strings.TrimSuffix(filepath.Base(path), ".toml")
		t.Run(name, func(t *testing.T) {
			c, err := Load(path, testDrivers(), testFilters()...)
			if err != nil {
				t.Fatal(err)
			}
			out := c.TOML()
			golden(t, "testdata/good/"+name+".effective", out)
			js, err := json.MarshalIndent(c, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "testdata/good/"+name+".json", append(js, '\n'))
			again, err := Parse("again", out, testDrivers(), testFilters()...)
			if err != nil {
				t.Fatalf("what TOML wrote is refused:\n%v", err)
			}
			if d := cmp.Diff(c, again, compare); d != "" {
				t.Errorf("after TOML and Parse (-before +after):\n%s", d)
			}
		})
	}
}

func TestDetail(t *testing.T) {
	_, err := Parse("c.toml", []byte("[log]\n\tlevle = \"info\" \x7f\n"), nil)
	var errs Errors
	if !errors.As(err, &errs) {
		t.Fatalf("not Errors: %v", err)
	}
	_, err = Parse("c.toml", []byte("[log]\n\tlevle = \"info\"\n"), nil)
	if !errors.As(err, &errs) {
		t.Fatalf("not Errors: %v", err)
	}
	want := "c.toml:2:2: log.levle: unknown key (did you mean level?)\n    \tlevle = \"info\"\n    \t^\n"
	if got := errs.Detail(); got != want {
		t.Errorf("Detail:\n%s\nwant:\n%s", got, want)
	}
	if one, ok := errors.AsType[Error](err); !ok || one.Line != 2 || one.Column != 2 || one.Suggestion != "level" {
		t.Errorf("the first error is %+v", one)
	}
}

// TestDetailPrintable: what a terminal would obey never reaches it.
func TestDetailPrintable(t *testing.T) {
	_, err := Parse("c.toml", []byte("\"\\u001b[2J\" = 1\n[log]\nlevel = \"x\" # \x1b[31m\n"), nil)
	var errs Errors
	if !errors.As(err, &errs) {
		t.Fatal(err)
	}
	if s := errs.Detail(); strings.ContainsAny(s, "\x1b\x07") {
		t.Errorf("escape in %q", s)
	}
}

func TestLoadErrors(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Load(t.TempDir(), nil); err == nil {
		t.Error("a directory was read")
	}
	big := filepath.Join(t.TempDir(), "big.toml")
	if err := os.WriteFile(big, bytes.Repeat([]byte("#\n"), MaxBytes/2+1), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(big, nil)
	if err == nil || err.Error() != big+":1:1: larger than 1048576 bytes" {
		t.Errorf("large file: %v", err)
	}
}

// numbered is n different keys.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "key-%d = %d\n", i, i)
	}
	return b.String()
}

func TestBounds(t *testing.T) {
	limit := func(what, data, want string) {
		t.Helper()
		start := time.Now()
		_, err := Parse("f", []byte(data), testDrivers(), testFilters()...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %.200v, want %q", what, err, want)
		}
		// A generous bound: it is quadratic work that this looks for.
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("%s took %s", what, d)
		}
	}
	var b strings.Builder
	limit("keys", numbered(MaxKeys+1), "more than 10000 keys")
	limit("elements", "[bridge.b]\nports=["+strings.Repeat("\"\",", MaxKeys+1)+"]\n", "more than 10000 keys")
	limit("nesting", "a="+strings.Repeat("[", 1000)+strings.Repeat("]", 1000), "nest more than 8 deep")
	limit("deep", "a="+strings.Repeat("[", 100_000), "nested more than")
	limit("dotted", strings.Repeat("a.", 300_000)+"a=1", "at most 8 parts")
	limit("headers", strings.Repeat("[[route]]\n", MaxKeys+1), "more than 10000 keys")
	limit("one long name", "["+strings.Repeat("a", MaxBytes-10)+"]", "at most 64 bytes")
	limit("unknown keys", "[adapter."+strings.Repeat("a", 64)+"]\ndriver=\"loop\"\n"+numbered(9000), "known: driver, filters, queues")

	b.Reset()
	b.WriteString("[bridge.b]\nports=[")
	for i := range 9000 {
		b.WriteString("\"n" + strings.Repeat("y", i%9) + "\",")
	}
	b.WriteString("]\n")
	limit("unknown names", b.String(), "there is no adapter")

	b.Reset()
	b.WriteString("[adapter.a]\ndriver=\"loop\"\n[interface.a]\non=\"a\"\naddresses=[\"10.0.0.1/8\"]\n")
	for i := range 1900 {
		fmt.Fprintf(&b, "[[forward]]\ninterface=\"a\"\nprotocol=\"tcp\"\nport=\"%d-60000\"\nto=\"10.1.0.1:%d-60000\"\n", i+1, i+1)
	}
	limit("forwards", b.String(), "is already taken")

	b.Reset()
	b.WriteString("[adapter.a]\ndriver=\"loop\"\n[bridge.b]\nports=[\"a\"]\nvlan=1\n[bridge.b.port.a]\ntrunk=[")
	for i := range 9000 {
		fmt.Fprintf(&b, "\"%d-4094\",", i%4094+1)
	}
	b.WriteString("]\n")
	limit("trunk", b.String(), "which is in the list too")

	b.Reset()
	b.WriteString("[bridge.b]\nports=[")
	for i := range 2000 {
		fmt.Fprintf(&b, "\"a%d\",", i)
	}
	b.WriteString("]\n")
	for i := range 3000 {
		fmt.Fprintf(&b, "[bridge.b.port.p%d]\naccess=1\n", i)
	}
	limit("ports", b.String(), "at most 1024 ports, found 2000")

	b.Reset()
	for i := range 2000 {
		fmt.Fprintf(&b, "[filter.f%d]\ndriver=\"count\"\n", i)
	}
	b.WriteString("[adapter.a]\ndriver=\"loop\"\nfilters=[")
	for i := range 5000 {
		fmt.Fprintf(&b, "\"g%d\",", i)
	}
	limit("filters", b.String()+"]\n", "there is no filter")

	b.Reset()
	b.WriteString("[adapter.a]\ndriver=\"loop\"\n[interface.a]\non=\"a\"\naddresses=[")
	for i := range 9000 {
		b.WriteString("\"" + netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String() + "/8\",")
	}
	b.WriteString("]\n[interface.b]\non=\"a\"\naddresses=[\"10.1.0.0/14\"]\n")
	limit("addresses", b.String(), "the adapter \"a\" already carries")
}

// TestOverlapBehindMany: many addresses in one network hide no collision.
func TestOverlapBehindMany(t *testing.T) {
	var b strings.Builder
	b.WriteString("[adapter.a]\ndriver=\"loop\"\n[adapter.b]\ndriver=\"loop\"\n[interface.a]\non=\"a\"\naddresses=[\n")
	for i := range 600 {
		b.WriteString("\"" + netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i + 1)}).String() + "/16\",\n")
	}
	b.WriteString("]\n[interface.b]\non=\"b\"\naddresses=[\"10.9.9.9/8\"]\n")
	_, err := Parse("f", []byte(b.String()), testDrivers(), testFilters()...)
	errs, ok := errors.AsType[Errors](err)
	if !ok || !strings.Contains(errs[len(errs)-1].Msg, "10.9.9.9/8 overlaps 10.0.") {
		t.Errorf("got %.300v", err)
	}
}

func TestDefault(t *testing.T) {
	for _, data := range []string{"", "# nothing\n", "\ufeff", "[control]\n[log]\n", "\r\n"} {
		c, err := Parse("empty", []byte(data), testDrivers(), testFilters()...)
		if err != nil {
			t.Errorf("%q: %v", data, err)
		} else if d := cmp.Diff(Default(), c, compare); d != "" {
			t.Errorf("%q (-want +got):\n%s", data, d)
		}
	}
}

func TestDriversAtFault(t *testing.T) {
	options := func(v any) func() any { return func() any { return v } }
	for name, tt := range map[string]struct {
		drivers []ndiscore.Driver
		want    string
	}{
		"no name":    {[]ndiscore.Driver{{NewOptions: options(&loopOptions{})}}, "needs a name"},
		"twice":      {[]ndiscore.Driver{{Name: "a", NewOptions: options(&loopOptions{})}, {Name: "a", NewOptions: options(&loopOptions{})}}, "needs a name of its own"},
		"no options": {[]ndiscore.Driver{{Name: "a"}}, "needs a name of its own and NewOptions"},
		"no pointer": {[]ndiscore.Driver{{Name: "a", NewOptions: options(loopOptions{})}}, "want a pointer to a struct"},
		"nil":        {[]ndiscore.Driver{{Name: "a", NewOptions: options((*loopOptions)(nil))}}, "want a pointer to a struct"},
		"type": {[]ndiscore.Driver{{Name: "a", NewOptions: options(&struct {
			C chan int `toml:"c"`
		}{})}}, "cannot be of type chan int"},
		"float": {[]ndiscore.Driver{{Name: "a", NewOptions: options(&struct {
			C float64 `toml:"c"`
		}{})}}, "cannot be of type float64"},
		"list inside": {[]ndiscore.Driver{{Name: "a", NewOptions: options(&struct {
			C [][]int `toml:"c"`
		}{})}}, "cannot be of type"},
		"range": {[]ndiscore.Driver{{Name: "a", NewOptions: options(&struct {
			C int `toml:"c" range:"1-2"`
		}{})}}, "want LOW..HIGH"},
		"taken": {[]ndiscore.Driver{{Name: "a", NewOptions: options(&struct {
			D string `toml:"driver"`
		}{})}}, "the key \"driver\" is taken"},
		"filters": {[]ndiscore.Driver{{Name: "a", NewOptions: options(&struct {
			F []string `toml:"filters"`
		}{})}}, "the key \"filters\" is taken"},
		"key twice": {[]ndiscore.Driver{{Name: "a", NewOptions: options(&struct {
			A, B int `toml:"c"`
		}{})}}, "is used twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f", nil, tt.drivers)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestFilterDriversAtFault(t *testing.T) {
	for want, d := range map[string]ndiscore.FilterDriver{
		`filter driver "": needs a name`:                {NewOptions: func() any { return &struct{}{} }},
		`filter driver "a": needs a name`:               {Name: "a"},
		`filter driver "a": NewOptions returns invalid`: {Name: "a", NewOptions: func() any { return nil }},
		`filter driver "a": the key "driver" is taken`: {Name: "a", NewOptions: func() any {
			return &struct {
				D string `toml:"driver"`
			}{}
		}},
	} {
		if _, err := Parse("f", nil, nil, d); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	_, err := Parse("f", []byte("[filter.a]\ndriver = \"fault\"\n"), nil)
	if want := `f:2:1: filter.a.driver: unknown driver "fault"; known: none`; err == nil || err.Error() != want {
		t.Errorf("without filter drivers: %v", err)
	}
}

// TestPortText: ports and targets are written as they are read.
func TestPortText(t *testing.T) {
	for _, s := range []string{"1", "65535", "1-65535"} {
		var p PortRange
		if err := p.UnmarshalText([]byte(s)); err != nil || p.String() != s {
			t.Errorf("%s: %s %v", s, p, err)
		}
	}
	for _, s := range []string{"10.0.0.5:80", "10.0.0.5:80-81", "[2001:db8::5]:80-90"} {
		var target Target
		if err := target.UnmarshalText([]byte(s)); err != nil || target.String() != s {
			t.Errorf("%s: %s %v", s, target, err)
		}
	}
	for _, s := range []string{"", "-", "1-", "-1", "0", "65536", "1-65536", "2-1", " 1", "1 ", "+1", "0x1", "1-2-3", "99999999999999999999"} {
		var p PortRange
		var v VLANRange
		if p.UnmarshalText([]byte(s)) == nil || v.UnmarshalText([]byte(s)) == nil {
			t.Errorf("%q is a range", s)
		}
	}
	for _, s := range []string{"", ":", ":80", "10.0.0.5", "10.0.0.5:", "host:80", "::1:80", "[::1]", "[::1]80", "[::1:80", "10.0.0.5]:80", "[[::1]]:80", "[10.0.0.5]:80", "1.2.3.4:80:90"} {
		var target Target
		if target.UnmarshalText([]byte(s)) == nil {
			t.Errorf("%q is a target: %s", s, target)
		}
	}
}

func TestKeys(t *testing.T) {
	var b strings.Builder
	for _, k := range Keys(testDrivers(), testFilters()...) {
		value := "= " + k.Default
		if k.Required {
			value = "(required)"
		}
		b.WriteString(strings.TrimLeft(k.Driver+" ", " ") + k.Path + " " + value + "  # " + k.Type + "\n")
		if !k.Required && !k.Is(k.Default) {
			t.Errorf("%s: its own default is not its default", k.Path)
		}
	}
	golden(t, "testdata/keys.want", []byte(b.String()))
	if k := (KeyDoc{Default: `"5m"`}); !k.Is(`"300s"`) || k.Is(`"301s"`) || k.Is("300") {
		t.Error("Is does not know durations")
	}
}

func TestDuration(t *testing.T) {
	for in, want := range map[string]string{
		"300s": "5m", "1h": "1h", "90m": "1h30m", "100ms": "100ms", "0s": "0s", "0": "0s", "3601s": "1h0m1s", "1h0m0s": "1h", "20m": "20m", "10s": "10s", "50us": "50us", "1m0.5s": "1m0.5s",
	} {
		if got := duration(in).String(); got != want {
			t.Errorf("%s is shown as %s, want %s", in, got, want)
		} else if duration(got) != duration(in) {
			t.Errorf("%s is not %s", got, in)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"failback", "mac_age", "mac_limit", "mode", "hold", "up_delay"}
	for in, want := range map[string]string{
		"fallback": "failback", "mac-age": "mac_age", "MAC_AGE": "mac_age", "hodl": "hold", "mod": "mode", "x": "", "failbacks_": "failback", "updelay": "up_delay", "maximum": "", "": "",
	} {
		budget := 100
		if got := nearest(in, known, &budget); got != want {
			t.Errorf("nearest(%q) = %q, want %q", in, got, want)
		}
	}
	budget := 0
	if got := nearest("hodl", known, &budget); got != "" {
		t.Errorf("a spent budget still found %q", got)
	}
}

func TestParent(t *testing.T) {
	for in, want := range map[string]string{
		"a.b.c": "a.b", "a.b[3]": "a.b", `a."x.y"`: "a", `a."x\".y".z`: `a."x\".y"`, "a": "", "": "", "route[1].via": "route[1]",
	} {
		if got := parent(in); got != want {
			t.Errorf("parent(%s) = %q, want %q", in, got, want)
		}
	}
}
