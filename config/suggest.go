package config

import "strings"

// suggestLimit is how many comparisons one file may spend on suggestions: a
// hostile file would otherwise make every bad name meet every good one.
const suggestLimit = 200_000

// nearest is the candidate that was probably meant by s, or "".
func nearest(s string, candidates []string, budget *int) string {
	best, bestDistance := "", 3
	if len(s) < 4 {
		bestDistance = 2
	}
	folded := fold(s)
	for _, c := range candidates {
		if *budget <= 0 {
			break
		}
		*budget--
		if c == "" || c == s {
			continue
		}
		if d := apart(folded, fold(c)); d < bestDistance && d < len(c) {
			best, bestDistance = c, d
		}
	}
	return best
}

// fold forgets what people mix up most: case, and - for _.
func fold(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }

// apart is how far a candidate is from what was written: a distance, or far.
// One that begins like the other ("warning", "warn") is near.
func apart(a, b string) int {
	const far = 1000
	if len(a) > 3 && len(b) > 3 && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)) {
		return min(2, max(len(a)-len(b), len(b)-len(a)))
	}
	if diff := len(a) - len(b); diff > 2 || diff < -2 {
		return far
	}
	return distance(a, b)
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that make a into b (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
