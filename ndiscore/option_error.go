package ndiscore

// OptionError is one bad key of a driver's options. A driver's Validate joins
// one per key with errors.Join, so that whoever read the options can point at
// the place where each was written.
type OptionError struct {
	Option string // the key, as in its toml tag
	Err    error  // what is wrong with the value, and what would be right
}

// Error is the key and what is wrong with it.
func (e *OptionError) Error() string { return e.Option + ": " + e.Err.Error() }

// Unwrap is what is wrong, without the key.
func (e *OptionError) Unwrap() error { return e.Err }

// Key is the key that is wrong.
func (e *OptionError) Key() string { return e.Option }
