package ndiscore

// Interposer is implemented by an adapter that stands around another one, as a
// fault injector does. Of the optional interfaces (LowerDevice, Resetter, …)
// it offers exactly those that the inner one has, whatever methods it has
// itself; its own method is called where it has one.
type Interposer interface{ Inner() Adapter }

// optional looks for an optional interface of a.
func optional[T any](a Adapter) (T, bool) {
	t, ok := any(a).(T)
	i, around := a.(Interposer)
	if !around {
		return t, ok
	}
	inner, has := optional[T](i.Inner())
	if !has || ok {
		return t, has && ok
	}
	return inner, true
}
