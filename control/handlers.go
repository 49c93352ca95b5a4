package control

import (
	"bufio"
	"encoding/json"
	"net/http"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func (s *Server) version(*request) (any, *Error) { return s.sw.Version(), nil }

func (s *Server) adapters(r *request) (any, *Error) {
	infos, err := s.sw.Adapters(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	return AdapterList{each(infos, wireAdapter)}, nil
}

func (s *Server) adapter(r *request) (any, *Error) {
	infos, err := s.sw.Adapters(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	names := make([]string, len(infos))
	for i, a := range infos {
		if a.Name == r.name {
			return wireAdapter(a), nil
		}
		names[i] = a.Name
	}
	return nil, unknownName("adapter", r.name, names)
}

func (s *Server) bindings(r *request) (any, *Error) {
	infos, err := s.sw.Adapters(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	list := BindingList{[]Binding{}}
	for _, a := range infos {
		list.Bindings = append(list.Bindings, each(a.Bindings, wireBinding)...)
	}
	return list, nil
}

func (s *Server) bundles(r *request) (any, *Error) {
	infos, err := s.sw.Bundles(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	return BundleList{each(infos, wireBundle)}, nil
}

func (s *Server) bundle(r *request) (any, *Error) {
	infos, err := s.sw.Bundles(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	b, fail := findBundle(infos, r.name)
	if fail != nil {
		return nil, fail
	}
	return wireBundle(*b), nil
}

func findBundle(infos []ndiscore.BundleInfo, name string) (*ndiscore.BundleInfo, *Error) {
	names := make([]string, len(infos))
	for i := range infos {
		if infos[i].Name == name {
			return &infos[i], nil
		}
		names[i] = infos[i].Name
	}
	return nil, unknownName("bundle", name, names)
}

func (s *Server) promote(r *request) (any, *Error) {
	var body PromoteRequest
	if fail := r.decode(&body); fail != nil {
		return nil, fail
	}
	if body.Member == "" {
		return nil, badRequest(`send {"member": "NAME"}`, "which member is to be promoted?")
	}
	if len(body.Member) > maxNameBytes {
		return nil, badRequest("", "the name has more than %d bytes", maxNameBytes)
	}
	if err := s.sw.Promote(r.Context(), r.name, body.Member); err != nil {
		return nil, errorFrom(err)
	}
	return Done{true}, nil
}

// fdb writes its entries one by one: there can be a million.
func (s *Server) fdb(w http.ResponseWriter, r *request) *Error {
	name := r.query.Get("bridge")
	if len(name) > maxNameBytes {
		return badRequest("", "the name has more than %d bytes", maxNameBytes)
	}
	if r.query.Has("bridge") && name == "" {
		return badRequest("leave the parameter out for all bridges", "which bridge?")
	}
	entries, err := s.sw.FDB(r.Context(), name)
	if err != nil {
		return errorFrom(err)
	}
	w.Header().Set("Content-Type", jsonType)
	b := bufio.NewWriterSize(w, 32<<10)
	_, _ = b.WriteString(`{"entries":[`)
	for i, e := range entries {
		if i > 0 {
			_ = b.WriteByte(',')
		}
		one, err := json.Marshal(wireFDBEntry(e))
		if err != nil {
			panic(http.ErrAbortHandler) // an entry is strings and numbers
		}
		if _, err := b.Write(one); err != nil {
			return nil // nobody listens any more
		}
	}
	_, _ = b.WriteString("]}\n")
	_ = b.Flush()
	return nil
}

func (s *Server) interfaces(r *request) (any, *Error) {
	infos, err := s.sw.Interfaces(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	return InterfaceList{each(infos, wireInterface)}, nil
}

func (s *Server) oneInterface(r *request) (any, *Error) {
	infos, err := s.sw.Interfaces(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	names := make([]string, len(infos))
	for i, info := range infos {
		if info.Name == r.name {
			return wireInterface(info), nil
		}
		names[i] = info.Name
	}
	return nil, unknownName("interface", r.name, names)
}

func (s *Server) bridges(r *request) (any, *Error) {
	bridges, err := s.sw.BridgeList(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	return BridgeList{each(bridges, wireBridge)}, nil
}

func (s *Server) oneBridge(r *request) (any, *Error) {
	bridges, err := s.sw.BridgeList(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	names := make([]string, len(bridges))
	for i, b := range bridges {
		if b.Name == r.name {
			return wireBridge(b), nil
		}
		names[i] = b.Name
	}
	return nil, unknownName("bridge", r.name, names)
}

func (s *Server) routes(r *request) (any, *Error) {
	infos, err := s.sw.Routes(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	return RouteList{each(infos, wireRoute)}, nil
}

func (s *Server) neighbors(r *request) (any, *Error) {
	infos, err := s.sw.Neighbors(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	return NeighborList{each(infos, wireNeighbor)}, nil
}

func (s *Server) stats(r *request) (any, *Error) {
	st, err := s.sw.Stats(r.Context())
	if err != nil {
		return nil, errorFrom(err)
	}
	return wireStats(st), nil
}

func (s *Server) config(w http.ResponseWriter, _ *request) *Error {
	w.Header().Set("Content-Type", tomlType)
	_, _ = w.Write(s.sw.Config())
	return nil
}
