// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// maxRecordBytes bounds a record on disk; one has about 1 KiB.
const maxRecordBytes = 64 << 10

// record is what a later process of the node has to know of a machine: that it is a
// warm entry, or under which id its caller knows it.
type record struct {
	durable.Header
	Machine string `json:"machine"`
	// Request is the id of the request that has the machine; empty while it is warm.
	Request string `json:"request,omitempty"`
	// Bound is when the request got it.
	Bound  time.Time `json:"bound,omitzero"`
	PodUID string    `json:"podUID,omitempty"`
	Pool   string    `json:"pool,omitempty"`
	// Namespace, Name and Revision of its template.
	Namespace string      `json:"namespace"`
	Name      string      `json:"name"`
	Revision  string      `json:"revision"`
	Shape     vm.Shape    `json:"shape"`
	Images    []SlotImage `json:"images,omitempty"`
	Created   time.Time   `json:"created"`
	// Warm is what it costs in its pool, Active what it costs its pod.
	Warm   Budget `json:"warm"`
	Active Budget `json:"active"`
}

// broken is a record that cannot be read.
type broken struct {
	machine string
	err     error
	// guess is what it seems to say, where that makes sense: what room its machine takes, and
	// which request has it. Nobody is given a machine by it.
	guess record
}

func (r record) template() Template {
	return Template{Namespace: r.Namespace, Name: r.Name, Revision: r.Revision, Shape: r.Shape}
}

// recordFormat is how a record is on disk. The machine of one that cannot be read is
// quarantined, see Verdict.
var recordFormat = durable.NewFormat(durable.FormatOptions[record]{
	Kind: "warm-machine", Version: 1, MaxBytes: maxRecordBytes, Check: func(r *record) error { return r.validate() },
})

func (r record) validate() error {
	errs := []error{vm.ValidateID(r.Machine), r.Shape.Validate(), r.Warm.validate(), r.Active.validate()}
	if r.Request != "" {
		errs = append(errs, vm.ValidateID(r.Request))
	} else if r.Pool == "" {
		errs = append(errs, errors.New("neither a pool nor a request"))
	}
	return errors.Join(errs...)
}

// recorder keeps records.
type recorder interface {
	// load returns all that can be read, and those that cannot, which stay.
	load() ([]record, []broken, error)
	// write puts a record in the place of the machine's former one, whole or not at all.
	write(r record) error
	// remove drops a machine's record. Idempotent.
	remove(machine string) error
}

// directory keeps records in files, <machine>.json.
type directory struct{ *durable.Store[record] }

// newDirectory keeps records in dir, which is made when it is missing. They are synced:
// the one on the way of a checkout costs it a few milliseconds, see docs/decisions.md.
func newDirectory(dir string, fsys durable.FS) directory {
	return directory{durable.NewStore(durable.StoreOptions[record]{
		FS: fsys, Dir: dir, Layout: durable.Layout{Suffix: ".json"}, Format: recordFormat, How: durable.Synced,
		ValidID: func(id string) bool { return vm.ValidateID(id) == nil },
		IDOf:    func(r *record) string { return r.Machine },
	})}
}

func (d directory) load() ([]record, []broken, error) {
	records, faults, err := d.Load()
	if err != nil {
		return nil, nil, fmt.Errorf("read records of warm machines: %w", err)
	}
	var bad []broken
	for _, f := range faults {
		data, err := durable.ReadFile(d.FS, f.Path, maxRecordBytes)
		if err != nil {
			data = nil // nothing can be guessed
		}
		bad = append(bad, broken{machine: f.ID, err: f, guess: guessRecord(data)})
	}
	return records, bad, nil
}

// guessRecord reads of a record that is not to be trusted what may be right all the same:
// another version of this program has the same names for the same things. Pure.
func guessRecord(data []byte) record {
	var all map[string]json.RawMessage
	if len(data) > maxRecordBytes || json.Unmarshal(data, &all) != nil {
		return record{}
	}
	var g record
	if json.Unmarshal(all["request"], &g.Request) != nil || vm.ValidateID(g.Request) != nil {
		g.Request = ""
	}
	for name, b := range map[string]*Budget{"warm": &g.Warm, "active": &g.Active} {
		if json.Unmarshal(all[name], b) != nil || b.validate() != nil {
			*b = Budget{}
		}
	}
	return g
}

func (d directory) write(r record) error {
	if err := d.Write(r.Machine, r); err != nil {
		return fmt.Errorf("write record of machine %q: %w", r.Machine, err)
	}
	return nil
}

// remove is for when the machine goes, whatever its record says.
func (d directory) remove(machine string) error {
	if err := d.Discard(machine); err != nil {
		return fmt.Errorf("drop record of machine %q: %w", machine, err)
	}
	return nil
}

// forgetful keeps no records: machines of an earlier process are only known by their
// own ids.
type forgetful struct{}

func (forgetful) load() ([]record, []broken, error) { return nil, nil, nil }
func (forgetful) write(record) error                { return nil }
func (forgetful) remove(string) error               { return nil }
