// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm"
)

// QuarantineDir is where a node writes which machines are in quarantine, and where others
// ask it to remove one: the node is the only one that knows which of its machines are
// whose, so it alone deletes. It decides anew at each start, from the same evidence; the
// files tell people, and nothing is read from the node's own. Empty: nobody is told.
type QuarantineDir string

const (
	quarantinedSuffix = ".json"
	unwantedSuffix    = ".remove"
	// maxQuarantinedBytes bounds such a file; one has a few hundred bytes.
	maxQuarantinedBytes = 64 << 10
)

// List returns what the node wrote last, sorted by machine.
func (d QuarantineDir) List() ([]Quarantined, error) {
	names, err := d.names(quarantinedSuffix)
	if err != nil {
		return nil, err
	}
	var list []Quarantined
	for _, id := range names {
		q, err := d.read(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // just removed
		}
		if err != nil {
			return nil, fmt.Errorf("read what is known of machine %q in quarantine: %w", id, err)
		}
		list = append(list, q)
	}
	return list, nil
}

func (d QuarantineDir) read(id string) (Quarantined, error) {
	f, err := os.Open(filepath.Join(string(d), id+quarantinedSuffix))
	if err != nil {
		return Quarantined{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxQuarantinedBytes+1))
	if err != nil {
		return Quarantined{}, err
	}
	if len(data) > maxQuarantinedBytes {
		return Quarantined{}, fmt.Errorf("more than %d bytes", maxQuarantinedBytes)
	}
	q := Quarantined{}
	if err := json.Unmarshal(data, &q); err != nil {
		return Quarantined{}, err
	}
	q.Machine = id
	return q, nil
}

// Remove asks the node to remove a machine from quarantine; it does so at its next look, or
// at its next start. The error is vm.ErrNotFound when none of this id is in quarantine.
func (d QuarantineDir) Remove(id string) error {
	if err := vm.ValidateID(id); err != nil {
		return fmt.Errorf("%w: %w", vm.ErrNotFound, err)
	}
	if _, err := d.read(id); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: no machine %q is in quarantine", vm.ErrNotFound, id)
	}
	f, err := os.OpenFile(filepath.Join(string(d), id+unwantedSuffix), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("ask for the removal of machine %q: %w", id, err)
	}
	return f.Close()
}

// Listed tells whether a machine is in quarantine, as the node wrote last.
func (d QuarantineDir) Listed(id string) (bool, error) {
	_, err := os.Stat(filepath.Join(string(d), id+quarantinedSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Asked tells whether a removal was asked for that the node has not carried out.
func (d QuarantineDir) Asked() bool { return len(d.requests()) > 0 }

// requests are the machines whose removal was asked for. What cannot be read is asked
// again.
func (d QuarantineDir) requests() []string {
	names, err := d.names(unwantedSuffix)
	if err != nil {
		return nil
	}
	return names
}

// names are the machines that have a file with this suffix, sorted.
func (d QuarantineDir) names(suffix string) ([]string, error) {
	if d == "" {
		return nil, nil
	}
	files, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read quarantine: %w", err)
	}
	var names []string
	for _, f := range files {
		if id, ok := strings.CutSuffix(f.Name(), suffix); ok && f.Type().IsRegular() && vm.ValidateID(id) == nil {
			names = append(names, id)
		}
	}
	return names, nil
}

// publish writes which machines are in quarantine, and drops what was written of others.
// Requests to remove others are dropped too: they have nothing to remove, or it is gone.
func (d QuarantineDir) publish(list []Quarantined) error {
	if d == "" {
		return nil
	}
	var errs []error
	for _, suffix := range []string{quarantinedSuffix, unwantedSuffix} {
		names, err := d.names(suffix)
		errs = append(errs, err)
		for _, id := range names {
			if !slices.ContainsFunc(list, func(q Quarantined) bool { return q.Machine == id }) {
				errs = append(errs, d.drop(id, suffix))
			}
		}
	}
	for _, q := range list {
		errs = append(errs, d.write(q))
	}
	return errors.Join(errs...)
}

// forget drops all that is written of a machine.
func (d QuarantineDir) forget(id string) error {
	if d == "" {
		return nil
	}
	return errors.Join(d.drop(id, quarantinedSuffix), d.drop(id, unwantedSuffix))
}

func (d QuarantineDir) drop(id, suffix string) error {
	err := os.Remove(filepath.Join(string(d), id+suffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// write is not synced: it is written again at each look.
func (d QuarantineDir) write(q Quarantined) error {
	data, err := json.MarshalIndent(q, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	temp := filepath.Join(string(d), tempPrefix+q.Machine)
	if err := os.WriteFile(temp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(string(d), q.Machine+quarantinedSuffix))
}
