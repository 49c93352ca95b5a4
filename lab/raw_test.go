package lab

// Two hosts and a cable, as frames see it:
//
//	┌─ a ──┐   veth   ┌─ b ──┐
//	│ eth0═╪══════════╪═eth0 │
//	└──────┘          └──────┘

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"
)

// testType is an EtherType for local experiments (IEEE 802): nothing in the kernel answers it.
const testType = 0x88b5

func frame(body string, tags ...uint16) []byte {
	f := []byte{2, 0, 0, 0, 0, 0xbb, 2, 0, 0, 0, 0, 0xaa}
	for _, vid := range tags {
		f = binary.BigEndian.AppendUint16(f, 0x8100)
		f = binary.BigEndian.AppendUint16(f, vid)
	}
	f = binary.BigEndian.AppendUint16(f, testType)
	return append(f, body...)
}

// experiments accepts the test's own frames, tagged or not.
func experiments(f RawFrame) bool {
	return len(f.Data) > 12 && bytes.HasPrefix(f.Data, frame("")[:12])
}

func TestRawFrames(t *testing.T) {
	CheckLeaks(t)
	l := NewTest(t)
	a, b := l.Host("a"), l.Host("b")
	l.Veth(a, "eth0", b, "eth0", VethOptions{})
	for _, vnet := range []bool{false, true} {
		ra, err := a.OpenRaw("eth0", RawOptions{VnetHeader: vnet})
		if err != nil {
			t.Fatal(err)
		}
		rb, err := b.OpenRaw("eth0", RawOptions{VnetHeader: vnet})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range [][]byte{
			frame("short"),
			frame(string(make([]byte, 1500))),
			frame("tagged", 0x6007),
			frame("tagged twice", 5, 6),
		} {
			if err := ra.Send(want); err != nil {
				t.Fatal(err)
			}
			got, err := rb.Recv(t.Context(), experiments)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Data, want) {
				t.Errorf("vnet %v: sent %x, received %x", vnet, want, got.Data)
			}
		}
		// What a host sends itself it does not see.
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if f, err := ra.Recv(ctx, experiments); !errors.Is(err, ErrTimeout) {
			t.Errorf("own frame came back: %x, %v", f.Data, err)
		}
		cancel()
		for range 2 {
			if err := ra.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := rb.Close(); err != nil {
			t.Error(err)
		}
		if err := ra.Send(frame("late")); err == nil {
			t.Error("sent on a closed socket")
		}
	}
}

// The kernel's checksum offload shows in the header, tag or no tag.
func TestRawVnetHeader(t *testing.T) {
	CheckLeaks(t)
	l, a, b := cable(t, VethOptions{})
	rb, err := b.OpenRaw("eth0", RawOptions{VnetHeader: true})
	if err != nil {
		t.Fatal(err)
	}
	ra, err := a.OpenRaw("eth0", RawOptions{VnetHeader: true})
	if err != nil {
		t.Fatal(err)
	}
	// UDP over IPv4, its checksum left to do, once plain and once tagged.
	for _, tags := range [][]uint16{nil, {7}} {
		f := frame("", tags...)
		binary.BigEndian.PutUint16(f[len(f)-2:], 0x0800)
		ip := len(f)
		f = append(f, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)
		f = append(f, 0x10, 0, 0x20, 0, 0, 12, 0, 0, 'b', 'o', 'd', 'y')
		v := VnetHeader{Flags: VnetNeedsChecksum, CsumStart: uint16(ip + 20), CsumOffset: 6}
		if err := ra.SendVnet(v, f); err != nil {
			t.Fatal(err)
		}
		got, err := rb.Recv(t.Context(), experiments)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Data, f) || got.Vnet.Flags&VnetNeedsChecksum == 0 || got.Vnet.CsumStart != v.CsumStart || got.Vnet.CsumOffset != 6 || !got.ChecksumPending {
			t.Errorf("tags %v: sent %+v %x, received %+v", tags, v, f, got)
		}
	}
	plain, err := a.OpenRaw("eth0", RawOptions{NotPromiscuous: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.SendVnet(VnetHeader{Flags: VnetNeedsChecksum}, frame("x")); err == nil {
		t.Error("a header went where none was asked for")
	}
	if err := l.Close(); err != nil { // closes the sockets
		t.Error(err)
	}
}
