// Package config reads config.toml into checked structs. It opens no device and
// knows drivers only as an argument: what a driver wants to be told is the
// struct that its NewOptions returns.
//
//	bytes ──document──▶ tree with positions ──decode──▶ structs ──check──▶ *Config ──Plan──▶ Changes
//	           │                                 │                   │
//	       syntax, a key twice        unknown keys, bad values   names, references, addresses
//	           └────────────────── every error, sorted by place ─────┘
//
// Rules:
//
//   - Everything wrong with a file is reported together, each at the line and
//     column of the key (in a list: the element) that is to be changed. A
//     Column counts bytes from 1. Only after a syntax error are the checks
//     between sections left out, because a section may be missing from what
//     could be read.
//   - What could not be decoded is not checked further: one mistake, one error.
//   - Tables keep the order in which the file first names them; the order of a
//     list is preference.
//   - Work is bounded: a file has at most MaxBytes bytes and MaxKeys keys, table
//     headers and list elements, and no check is quadratic in them.
//
// Plan compares what runs with what is wanted and lists the steps between them.
// Things are known by their names; the order of tables is no difference, nor is
// that of a bridge's ports. What a step of kind update may change is what can be
// changed while traffic flows; for the rest the thing is made anew.
//
// A struct says by its tags how it is written; drivers use the same tags:
//
//	type Options struct {
//		Interface string        `toml:"interface"`
//		Queues    int           `toml:"queues" range:"1..16"`
//		Offload   string        `toml:"offload" oneof:"auto,on,off"`
//		Poll      time.Duration `toml:"poll"`
//	}
//
// A field may be a string, a bool, an integer, a time.Duration, a netip.Addr, a
// netip.Prefix, a type with MarshalText and UnmarshalText, a list of those, or
// a struct (a table below). Fields without a toml tag are not configuration.
// What NewOptions put into a field is its default. Options may implement
// ndiscore.Validator, whose errors find their place by ndiscore.OptionError,
// and DeviceKeyer.
package config
