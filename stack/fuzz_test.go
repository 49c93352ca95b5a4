package stack

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// checkedWire is a device that checks what it is given.
type checkedWire struct {
	mtu   int
	sent  atomic.Uint64
	wrong atomic.Pointer[string]
}

func (w *checkedWire) Send(b *ndiscore.Batch) {
	for i, f := range b.Frames {
		b.Status[i] = ndiscore.DropNone
		w.sent.Add(1)
		if s := w.complaint(f); s != "" {
			s = fmt.Sprintf("%s: %x %+v", s, f.Bytes(nil), f.Offload)
			w.wrong.CompareAndSwap(nil, &s)
		}
	}
}

func (w *checkedWire) complaint(f *ndiscore.Frame) string {
	if len(f.Head) < 14+8 || f.Len() > ndiscore.MaxFrame {
		return "length"
	}
	// A copy: CheckOffload may bring it into its own form.
	c := *frameOf(f.Head)
	c.Segs, c.Offload = f.Segs, f.Offload
	if r := c.CheckOffload(); r != ndiscore.DropNone {
		return r.String()
	}
	if c.Offload.GSO == ndiscore.GSONone {
		// A super-frame that fits into one segment became an ordinary frame.
		if f.Len()-14 > w.mtu {
			return "too long"
		}
		return ""
	}
	if f.Offload.HdrLen != c.Offload.HdrLen {
		return "HdrLen"
	}
	if int(f.Offload.HdrLen)-14+int(f.Offload.GSOSize) > w.mtu {
		return "segments too long"
	}
	return ""
}

// bareRouter is a router without a core, between two checked wires.
type bareRouter struct {
	*Router
	a, b   *port
	wa, wb *checkedWire
	worker *ndiscore.Worker
	batch  *ndiscore.Batch
}

// fixed is an adapter whose attributes never change.
func fixed(a ndiscore.Attributes) func() ndiscore.Attributes {
	return func() ndiscore.Attributes { return a }
}

func newBareRouter(t testing.TB, o Options, mtuA, mtuB int) *bareRouter {
	o.Logger = zap.NewNop()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.start(func(string) (*ndiscore.Worker, error) { return new(ndiscore.Worker), nil }); err != nil {
		t.Fatal(err)
	}
	d := &bareRouter{Router: r, wa: &checkedWire{mtu: mtuA}, wb: &checkedWire{mtu: mtuB}, worker: new(ndiscore.Worker)}
	bind := func(name string, w wire, mac ndiscore.MAC, mtu int) *port {
		p, err := r.bind(context.Background(), name, name, w, fixed(ndiscore.Attributes{MAC: mac, MTU: mtu, Link: connectedLink()}))
		if err != nil {
			t.Fatal(err)
		}
		r.open(context.Background(), p)
		return p.port.Load()
	}
	d.a = bind("a", d.wa, macA, mtuA)
	d.b = bind("b", d.wb, macB, mtuB)
	d.batch = ndiscore.NewBatch(d.worker)
	d.batch.Borrowed = true
	t.Cleanup(func() {
		r.unbind(context.Background(), d.a.plug)
		r.unbind(context.Background(), d.b.plug)
		close(r.stop)
		<-r.ended
	})
	d.in(d.a, arpRequest(hostA, "10.1.0.2", "10.1.0.1"), solicitation(hostA, "fd01::2", "fd01::1"))
	d.in(d.b, arpRequest(hostB, "10.2.0.2", "10.2.0.1"), solicitation(hostB, "fd02::2", "fd02::1"))
	return d
}

// in receives frames on p and returns when all has been delivered.
func (d *bareRouter) in(p *port, frames ...*ndiscore.Frame) {
	d.batch.Reset()
	for _, f := range frames {
		d.batch.Append(f)
	}
	d.receive(p, d.batch)
	d.settle()
}

func (d *bareRouter) settle() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for d.queue.waiting.Load() != 0 && ctx.Err() == nil {
		runtime.Gosched()
	}
	// Once the feeder answers, the last burst is over, too.
	if err := d.do(ctx, func() {}); err != nil {
		buf := make([]byte, 1<<20)
		panic(fmt.Sprintf("the feeder does not answer: %v\n%s", err, buf[:runtime.Stack(buf, true)]))
	}
}

// FuzzReceive: no frame, whatever its source claims about it, makes netstack
// panic or leaves as something that a device must not be given.
func FuzzReceive(f *testing.F) {
	add := func(fr *ndiscore.Frame) {
		o := fr.Offload
		f.Add(fr.Bytes(nil), uint8(o.Flags), uint8(o.GSO), o.GSOSize, o.CsumStart, o.CsumOffset, uint16(200))
	}
	add(udp4(flow{ttl: 64, size: 100}))
	add(udp4(flow{ttl: 1, size: 100}))
	add(udp4(flow{ttl: 64, size: 1473}))
	add(udp6(flow{ttl: 64, size: 1500}))
	add(super(false, flow{ttl: 64, df: true, size: 5000}, 1400))
	add(super(true, flow{ttl: 64, size: 5000}, 1400))
	add(super(false, flow{ttl: 64, size: 5000}, 2000))
	add(echo4("10.1.0.2", "10.2.0.1", 200))
	add(arpRequest(hostA, "10.1.0.2", "10.1.0.1"))
	add(solicitation(hostA, "fd01::2", "fd01::1"))
	add(chain6(0, repeat(60, 20)...))
	add(chain6(0, repeat(protoFragment, 30)...))
	add(chain6(1, 0, 43, 60, 44, 253))
	add(rewrite(udp6(flow{ttl: 64, size: 1300}), func(h []byte) { h[6] = protoNoNext }))
	add(rewrite(udp4(flow{ttl: 64, size: 64}), func(h []byte) { h[0] = 0x4a }))
	d := newBareRouter(f, testOptions(), 9000, 1500)
	f.Fuzz(func(t *testing.T, b []byte, flags, gso uint8, size, start, off, head uint16) {
		if len(b) > ndiscore.MaxFrame {
			return
		}
		raw := split(frameOf(b), max(int(head), 1))
		raw.Offload = ndiscore.Offload{Flags: ndiscore.OffloadFlags(flags), GSO: ndiscore.GSOKind(gso), GSOSize: size, CsumStart: start, CsumOffset: off}
		// As it is, and as mutations rarely make it: for us, with a right
		// header checksum.
		nice := split(frameOf(b), max(int(head), 1))
		nice.Offload = raw.Offload
		if len(nice.Head) >= 34 {
			copy(nice.Head, macA[:])
			copy(nice.Head[6:], hostA[:])
			switch nice.Head[14] >> 4 {
			case 4:
				nice.Head[12], nice.Head[13] = 8, 0
				rewrite(nice, func([]byte) {})
			case 6:
				nice.Head[12], nice.Head[13] = 0x86, 0xdd
			}
		}
		d.in(d.a, raw, nice)
		if s := d.Stats(); s["panics"] != 0 {
			t.Fatal("netstack panicked")
		}
		for _, w := range []*checkedWire{d.wa, d.wb} {
			if s := w.wrong.Load(); s != nil {
				t.Fatal(*s)
			}
		}
	})
}
