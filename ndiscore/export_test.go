package ndiscore

import "time"

// SetPatience sets how long c waits for a worker that is elsewhere, before c is
// put to use.
func SetPatience(c *Core, d time.Duration) { c.patience = d }
