//go:build !race

package ndistest

// RaceEnabled says whether the race detector is on, which makes everything
// several times slower.
const RaceEnabled = false
