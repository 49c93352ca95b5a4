package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// VLANRange is VLANs of a trunk, First to Last, written "10" or "20-29".
type VLANRange struct{ First, Last uint16 }

// PortRange is ports of TCP or UDP, First to Last, written "8080" or
// "8000-8010".
type PortRange struct{ First, Last uint16 }

// Target is where a published port leads, written "10.0.0.5:80",
// "10.0.0.5:8000-8010" or "[2001:db8::5]:80".
type Target struct {
	Addr  netip.Addr
	Ports PortRange
}

// maxVLAN is the last VLAN there may be (IEEE 802.1Q 9.6: 4095 is reserved).
const maxVLAN = 4094

// String is the range as it is written.
func (v VLANRange) String() string { return rangeText(v.First, v.Last) }

// MarshalText is String.
func (v VLANRange) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads "10" or "20-29".
func (v *VLANRange) UnmarshalText(text []byte) error {
	first, last, ok := parseRange(string(text), maxVLAN)
	if !ok {
		return fmt.Errorf(`want a VLAN from 1 to %d, or a range such as "20-29"`, maxVLAN)
	}
	*v = VLANRange{first, last}
	return nil
}

// String is the range as it is written.
func (p PortRange) String() string { return rangeText(p.First, p.Last) }

// Len is how many ports there are.
func (p PortRange) Len() int { return int(p.Last) - int(p.First) + 1 }

// MarshalText is String.
func (p PortRange) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads "8080" or "8000-8010".
func (p *PortRange) UnmarshalText(text []byte) error {
	first, last, ok := parseRange(string(text), 65535)
	if !ok {
		return errors.New(`want a port from 1 to 65535, or a range such as "8000-8010"`)
	}
	*p = PortRange{first, last}
	return nil
}

// String is the target as it is written.
func (t Target) String() string {
	switch {
	case !t.Addr.IsValid():
		return ""
	case t.Addr.Is6():
		return "[" + t.Addr.String() + "]:" + t.Ports.String()
	}
	return t.Addr.String() + ":" + t.Ports.String()
}

// MarshalText is String.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what String writes.
func (t *Target) UnmarshalText(text []byte) error {
	s := string(text)
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return errors.New(`needs a port behind the address: "10.0.0.5:80", "[2001:db8::5]:80"`)
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return errBadTarget
	}
	host := s[:i]
	inside, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		if host, bracketed = strings.CutSuffix(inside, "]"); !bracketed {
			return errBadTarget
		}
	}
	a, err := netip.ParseAddr(host)
	switch {
	case err != nil || a.Is6() != bracketed:
		return errBadTarget
	case a.Zone() != "":
		return errors.New("a zone has no meaning here")
	case a.Is4In6():
		return fmt.Errorf("write the IPv4 address %s", a.Unmap())
	}
	var ports PortRange
	if err := ports.UnmarshalText([]byte(s[i+1:])); err != nil {
		return err
	}
	*t = Target{a, ports}
	return nil
}

var errBadTarget = errors.New(`want an address and a port such as "10.0.0.5:80", or "[2001:db8::5]:80"`)

// rangeText writes a range; nothing for none.
func rangeText(first, last uint16) string {
	switch {
	case first == 0:
		return ""
	case first == last:
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// parseRange reads N or N-M, with 1 <= N <= M <= most.
func parseRange(s string, most int) (first, last uint16, ok bool) {
	low, high, isRange := strings.Cut(s, "-")
	if !isRange {
		high = low
	}
	f, ok1 := parseNumber(low, most)
	l, ok2 := parseNumber(high, most)
	return f, l, ok1 && ok2 && f <= l
}

func parseNumber(s string, most int) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n >= 1 && int(n) <= most
}
