package config

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// driver is what matters here of a miniport driver or a filter driver.
type driver struct {
	name       string
	newOptions func() any
}

// known are the drivers that a file may name.
type known struct{ adapters, filters []driver }

func knownDrivers(adapters []ndiscore.Driver, filters []ndiscore.FilterDriver) known {
	k := known{}
	for _, d := range adapters {
		k.adapters = append(k.adapters, driver{d.Name, d.NewOptions})
	}
	for _, d := range filters {
		k.filters = append(k.filters, driver{d.Name, d.NewOptions})
	}
	return k
}

// check finds option structs that could not be read or shown.
func (k known) check() error {
	if err := checkDrivers("driver", k.adapters, reflect.TypeFor[adapterText]()); err != nil {
		return err
	}
	return checkDrivers("filter driver", k.filters, reflect.TypeFor[filterText]())
}

// checkDrivers wants options with no key of text, which everyone has.
func checkDrivers(what string, drivers []driver, text reflect.Type) error {
	taken, seen := keysOf(mustFields(text)), map[string]bool{}
	for _, d := range drivers {
		if d.name == "" || seen[d.name] || d.newOptions == nil {
			return fmt.Errorf("config: %s %q: needs a name of its own and NewOptions", what, d.name)
		}
		seen[d.name] = true
		v := reflect.ValueOf(d.newOptions())
		if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
			return fmt.Errorf("config: %s %q: NewOptions returns %s, want a pointer to a struct", what, d.name, v.Kind())
		}
		fields, err := fieldsOf(v.Elem().Type())
		if err != nil {
			return fmt.Errorf("config: %s %q: %w", what, d.name, err)
		}
		for _, f := range fields {
			if slices.Contains(taken, f.key) {
				return fmt.Errorf("config: %s %q: the key %q is taken", what, d.name, f.key)
			}
		}
	}
	return nil
}

// driven reads a table whose keys depend on its driver: into text, a pointer to
// a struct, those that every driver has, the others into that driver's options.
// The options are nil when the driver could not be told.
func (r *reader) driven(path string, t *table, drivers []driver, text any) (string, any) {
	common := mustFields(reflect.TypeOf(text).Elem())
	for _, f := range common {
		if v := t.values[f.key]; v != nil {
			r.at[join(path, f.key)] = v.at
			r.set(v, join(path, f.key), reflect.ValueOf(text).Elem().FieldByIndex(f.index), f)
		}
	}
	v, at := t.values["driver"], join(path, "driver")
	switch {
	case v == nil && !r.whole: // it may be in what could not be read
		return "", nil
	case v == nil:
		r.fail(path, "needs the key driver: one of %s", shownNames(drivers))
		return "", nil
	case r.bad[at]:
		return "", nil
	}
	for _, d := range drivers {
		if d.name == v.text {
			options := d.newOptions()
			r.structure(t, path, reflect.ValueOf(options).Elem(), fmt.Sprintf(" for driver %s", quote(d.name)), keysOf(common)...)
			return d.name, options
		}
	}
	suggestion := nearest(v.text, driverNames(drivers), &r.budget)
	if suggestion != "" {
		suggestion = quote(suggestion)
	}
	r.hint(at, suggestion, "unknown driver %s; known: %s", quote(short(v.text)), shownNames(drivers))
	return "", nil
}

// shownNames is driverNames for messages.
func shownNames(drivers []driver) string {
	if len(drivers) == 0 {
		return "none"
	}
	return quoteAll(driverNames(drivers))
}

func driverNames(drivers []driver) []string {
	out := make([]string, len(drivers))
	for i, d := range drivers {
		out[i] = d.name
	}
	return out
}
