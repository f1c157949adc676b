// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// recordVersion is the version of a record on disk. One of another version is not
// read: its machine is quarantined, see Verdict.
const recordVersion = 1

// maxRecordBytes bounds a record on disk; one has about 1 KiB.
const maxRecordBytes = 64 << 10

// record is what a later process of the node has to know of a machine: that it is a
// warm entry, or under which id its caller knows it.
type record struct {
	Version int    `json:"version"`
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

func (r record) validate() error {
	if r.Version != recordVersion {
		return fmt.Errorf("version %d, want %d", r.Version, recordVersion)
	}
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

const (
	recordSuffix = ".json"
	tempPrefix   = ".tmp-"
)

// directory keeps records in files. They are not synced: they have to survive this
// process, and a machine does not survive what a sync protects from.
type directory string

func (d directory) load() ([]record, []broken, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, nil, fmt.Errorf("make directory of warm machines: %w", err)
	}
	files, err := os.ReadDir(string(d))
	if err != nil {
		return nil, nil, fmt.Errorf("read records of warm machines: %w", err)
	}
	var records []record
	var bad []broken
	for _, f := range files {
		path := filepath.Join(string(d), f.Name())
		if strings.HasPrefix(f.Name(), tempPrefix) {
			if err := os.Remove(path); err != nil {
				return nil, nil, fmt.Errorf("remove half a record: %w", err)
			}
			continue
		}
		machine, ok := strings.CutSuffix(f.Name(), recordSuffix)
		if !ok || !f.Type().IsRegular() || vm.ValidateID(machine) != nil {
			continue // nothing of ours
		}
		r, guess, err := readRecord(path, machine)
		if err != nil {
			bad = append(bad, broken{machine: machine, err: err, guess: guess})
			continue
		}
		records = append(records, r)
	}
	return records, bad, nil
}

func readRecord(path, machine string) (r, guess record, err error) {
	f, err := os.Open(path)
	if err != nil {
		return record{}, record{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err != nil {
		return record{}, record{}, err
	}
	r, err = decodeRecord(data)
	if err == nil && r.Machine != machine {
		err = fmt.Errorf("it is of machine %.100q", r.Machine)
	}
	if err != nil {
		return record{}, guessRecord(data), err
	}
	return r, record{}, nil
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

// decodeRecord reads a record and checks it. Pure.
func decodeRecord(data []byte) (record, error) {
	if len(data) > maxRecordBytes {
		return record{}, fmt.Errorf("more than %d bytes", maxRecordBytes)
	}
	var r record
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return record{}, err
	}
	return r, r.validate()
}

func (d directory) write(r record) error {
	r.Version = recordVersion
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record of machine %q: %w", r.Machine, err)
	}
	temp := filepath.Join(string(d), tempPrefix+r.Machine)
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return fmt.Errorf("write record of machine %q: %w", r.Machine, err)
	}
	if err := os.Rename(temp, filepath.Join(string(d), r.Machine+recordSuffix)); err != nil {
		return fmt.Errorf("write record of machine %q: %w", r.Machine, err)
	}
	return nil
}

func (d directory) remove(machine string) error {
	if err := os.Remove(filepath.Join(string(d), machine+recordSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
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
