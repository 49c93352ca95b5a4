// Package configtest checks an annotated example configuration against the
// code that reads it, so that the example can be trusted as documentation.
package configtest

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

var (
	// commented is a setting that is switched off: a mark, and at once the key
	// or the table. Prose has a blank after the mark.
	commented = regexp.MustCompile(`(?m)^#([a-z\[])`)
	header    = regexp.MustCompile(`^\[{1,2}([^\[\]]+)\]{1,2}`)
	setting   = regexp.MustCompile(`^([a-z0-9_."]+) *= *(.*)$`)
	// remark divides a value from the remark behind it.
	remark = regexp.MustCompile(`^((?:"[^"]*"|[^"#])*?) *# *(.*)$`)
)

// CheckExample checks data, an annotated configuration called name:
//
//   - as it stands, it means the same as an empty file;
//   - with the mark taken from every commented setting, it is valid;
//   - every key that the sections and the drivers know is in it;
//   - every value is the key's default, unless the remark behind it starts with
//     "required:" or "example:", and every setting has a remark.
//
// The error joins everything found.
func CheckExample(name string, data []byte, drivers []ndiscore.Driver, filters ...ndiscore.FilterDriver) error {
	var errs []error
	if c, err := config.Parse(name, data, drivers, filters...); err != nil {
		errs = append(errs, fmt.Errorf("as it stands: %w", err))
	} else if !reflect.DeepEqual(c, config.Default()) {
		errs = append(errs, fmt.Errorf("%s: as it stands it does not equal the defaults", name))
	}
	whole := commented.ReplaceAll(data, []byte("$1"))
	if _, err := config.Parse(name, whole, drivers, filters...); err != nil {
		return errors.Join(append(errs, fmt.Errorf("without the marks: %w", err))...)
	}
	return errors.Join(append(errs, checkKeys(name, string(whole), config.Keys(drivers, filters...))...)...)
}

func checkKeys(name, text string, keys []config.KeyDoc) []error {
	var errs []error
	seen := map[config.KeyDoc]bool{}
	section, driver := "", ""
	for n, line := range strings.Split(text, "\n") {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s:%d: %s", name, n+1, fmt.Sprintf(format, args...)))
		}
		if m := header.FindStringSubmatch(line); m != nil {
			section, driver = general(m[1]), ""
			continue
		}
		m := setting.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		path, value, why := m[1], m[2], ""
		if section != "" {
			path = section + "." + path
		}
		if r := remark.FindStringSubmatch(value); r != nil {
			value, why = strings.TrimSpace(r[1]), r[2]
		}
		if path == "adapter.NAME.driver" || path == "filter.NAME.driver" {
			driver = strings.Trim(value, `"`)
		}
		i := slices.IndexFunc(keys, func(k config.KeyDoc) bool {
			return k.Path == path && (k.Driver == "" || k.Driver == driver)
		})
		if i < 0 {
			bad("%s is written in a form that this check cannot follow (the driver comes first in its table)", path)
			continue
		}
		k := keys[i]
		seen[k] = true
		required, example := strings.HasPrefix(why, "required:"), strings.HasPrefix(why, "example:")
		switch {
		case why == "":
			bad("%s has no remark", path)
		case k.Required && !required:
			bad(`%s is required: its remark has to start with "required:"`, path)
		case !k.Required && !required && !example && !k.Is(value):
			bad(`%s = %s: the default is %s; correct it, or start the remark with "example:"`, path, value, k.Default)
		}
	}
	for _, k := range keys {
		if !seen[k] {
			what := k.Path
			if k.Driver != "" {
				what += " of driver " + k.Driver
			}
			errs = append(errs, fmt.Errorf("%s: the key %s is missing", name, what))
		}
	}
	return errs
}

// general is a table with NAME and PORT for the names in it: adapter.lan0 is
// adapter.NAME.
func general(table string) string {
	parts := strings.SplitN(table, ".", 4)
	if len(parts) > 1 {
		parts[1] = "NAME"
	}
	if len(parts) > 3 && parts[2] == "port" {
		parts[3] = "PORT"
	}
	return strings.Join(parts, ".")
}
