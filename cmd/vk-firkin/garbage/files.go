// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package garbage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// The parts of the state root that are looked after here.
const (
	podsDir     = "pods"
	podRecord   = "pod.json"
	warmDir     = "warm"
	machinesDir = "machines"
	// asideDir has a file for each machine that the node has put aside, see
	// warmpool.QuarantineDir.
	asideDir     = "quarantine"
	recordSuffix = ".json"
)

// settle is how old something must be to be looked at, whatever the grace period: what
// was made a moment ago may be about to get its record. Nothing takes as long between the
// two; a minute is for a host that was busy.
const settle = time.Minute

// maxRecordBytes bounds a record; those of pods hold a pod, of which the API server takes
// at most 1.5 MiB.
const maxRecordBytes = 4 << 20

// references is what the records on the disk speak of.
type references struct {
	// digests, as 64 hex digits, and who names each.
	digests map[string]string
	texts   []record
}

// record is one record as it is on the disk.
type record struct{ who, text string }

var digestText = regexp.MustCompile(`[0-9a-f]{64}`)

// readReferences reads the records of pods and warm machines, and of machines what images
// they have. One that cannot be read makes all of it unknown.
func readReferences(fsys durable.FS, stateDir string) (references, error) {
	r := references{digests: map[string]string{}}
	read := func(path, who string, names bool) error {
		data, err := durable.ReadFile(fsys, path, maxRecordBytes) // which waits for nothing and follows no link
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil // removed meanwhile, or not in a directory of ours
		}
		if err != nil {
			return fmt.Errorf("read record: %w", err)
		}
		for _, digest := range digestText.FindAllString(string(data), -1) {
			r.digests[digest] = "the record of " + who + " names it"
		}
		if names {
			r.texts = append(r.texts, record{who: who, text: string(data)})
		}
		return nil
	}
	var errs []error
	// What cannot be listed is not empty: a directory that cannot be read may hold the one
	// record that speaks of what is about to be removed.
	each := func(dir string, do func(name string) error) {
		all, err := entries(fsys, dir)
		errs = append(errs, err)
		for _, e := range all {
			errs = append(errs, do(e.Name()))
		}
	}
	each(filepath.Join(stateDir, podsDir), func(uid string) error {
		return read(filepath.Join(stateDir, podsDir, uid, podRecord), "pod "+uid, true)
	})
	each(filepath.Join(stateDir, warmDir), func(name string) error {
		machine, ok := strings.CutSuffix(name, recordSuffix)
		if !ok {
			return nil
		}
		return read(filepath.Join(stateDir, warmDir, name), "warm machine "+machine, true)
	})
	each(filepath.Join(stateDir, machinesDir), func(machine string) error {
		// A machine's own records name itself: only what they say of images counts.
		dir := filepath.Join(stateDir, machinesDir, machine)
		if info, err := fsys.Lstat(dir); err != nil || !info.IsDir() {
			return notThere(err)
		}
		all, err := entries(fsys, dir)
		for _, e := range all {
			if strings.HasSuffix(e.Name(), recordSuffix) {
				err = errors.Join(err, read(filepath.Join(dir, e.Name()), "machine "+machine, false))
			}
		}
		return err
	})
	return r, errors.Join(errs...)
}

// notThere drops the error that means that nothing is there.
func notThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// entries lists a directory; one that is not there is empty.
func entries(fsys durable.FS, dir string) ([]fs.DirEntry, error) {
	all, err := fsys.ReadDir(dir)
	if notThere(err) != nil {
		return nil, fmt.Errorf("look at %s: %w", filepath.Base(dir), err)
	}
	return all, nil
}

// speaksOf is who names a machine, empty for nobody.
func (r references) speaksOf(machine string) string {
	for _, rec := range r.texts {
		if strings.Contains(rec.text, `"`+machine+`"`) {
			return rec.who
		}
	}
	return ""
}

// thing is what is known of a file or a directory that may be garbage.
type thing struct {
	kind Kind
	name string
	// keeper is who needs it; empty: nobody.
	keeper string
	// changed is when something in it last changed.
	changed time.Time
	bytes   int64
	path    string
}

// decide tells whether a thing goes, and why. Pure.
func decide(x thing, grace time.Duration, now time.Time) Decision {
	age := now.Sub(x.changed)
	d := Decision{Kind: x.kind, Name: x.name, Bytes: x.bytes, LastUsed: x.changed}
	switch wait := max(grace, settle); {
	case x.keeper != "":
		d.Reason = x.keeper
	case age < wait:
		d.Young, d.Reason = true, fmt.Sprintf("nobody speaks of it; changed %s ago, less than %s", age.Round(time.Second), wait)
	default:
		d.Remove, d.Reason = true, fmt.Sprintf("nobody speaks of it; changed %s ago", age.Round(time.Second))
	}
	return d
}

// carryOut decides on things and removes those that go.
func (c *Collector) carryOut(things []thing, opts Options, remove func(thing) error) (all []Decision, err error) {
	var errs []error
	for _, x := range things {
		d := decide(x, opts.Grace, c.config.Now())
		if d.Remove && !opts.DryRun {
			if err := remove(x); err != nil {
				errs = append(errs, fmt.Errorf("remove %s %s: %w", x.kind, x.name, err))
				d.Remove, d.Young, d.Reason = false, true, err.Error()
			}
		}
		all = append(all, d)
	}
	return all, errors.Join(errs...)
}

// entries lists a directory of the state root; one that is not there is empty.
func (c *Collector) entries(dir string) ([]fs.DirEntry, error) {
	return entries(c.config.FS, filepath.Join(c.config.StateDir, dir))
}

func (c *Collector) thing(kind Kind, dir, name string) thing {
	x := thing{kind: kind, name: name, path: filepath.Join(c.config.StateDir, dir, name)}
	var err error
	if x.bytes, x.changed, err = measure(c.config.FS, x.path); err != nil {
		x.keeper = "how old it is cannot be told: " + err.Error()
	}
	return x
}

// remove removes a thing, for good before it is said to be gone. What went meanwhile is.
func (c *Collector) remove(x thing) error {
	return durable.Remove(c.config.FS, x.path, durable.Synced)
}

// collectPods removes the directories of pods that have no record: their pods are gone,
// and the removal of the rest did not come to its end.
func (c *Collector) collectPods(opts Options) ([]Decision, error) {
	all, err := c.entries(podsDir)
	if err != nil {
		return nil, err
	}
	var things []thing
	for _, e := range all {
		if !e.IsDir() {
			continue
		}
		x := c.thing(KindPod, podsDir, e.Name())
		switch _, err := c.config.FS.Lstat(filepath.Join(x.path, podRecord)); {
		case err == nil:
			x.keeper = "it has a record"
		case !errors.Is(err, fs.ErrNotExist):
			x.keeper = "whether it has a record cannot be told: " + err.Error()
		}
		things = append(things, x)
	}
	return c.carryOut(things, opts, func(x thing) error {
		if _, err := c.config.FS.Lstat(filepath.Join(x.path, podRecord)); err == nil {
			return errors.New("it has got a record meanwhile")
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for its record again: %w", err)
		}
		return c.remove(x)
	})
}

// collectRecords removes records of warm machines that do not exist, and halves of
// records that were never finished.
func (c *Collector) collectRecords(opts Options) ([]Decision, error) {
	all, err := c.entries(warmDir)
	if err != nil {
		return nil, err
	}
	// Who needs the record of a machine; the error is that it cannot be told.
	keeper := func(machine string) (string, error) {
		aside, aerr := c.aside(machine)
		_, err := c.config.FS.Lstat(filepath.Join(c.config.StateDir, machinesDir, machine))
		switch {
		case slices.Contains(c.accounted(), machine):
			return "the node accounts for its machine", nil
		case aside != "":
			return aside, aerr
		case err == nil:
			return "its machine exists", nil
		case !errors.Is(err, fs.ErrNotExist):
			return "whether its machine exists cannot be told: " + err.Error(), err
		}
		return "", nil
	}
	var things []thing
	for _, e := range all {
		if e.IsDir() {
			continue
		}
		if strings.HasPrefix(e.Name(), durable.TempPrefix) {
			things = append(things, c.thing(KindLeftover, warmDir, e.Name()))
			continue
		}
		machine, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || vm.ValidateID(machine) != nil {
			continue // not ours
		}
		x := c.thing(KindRecord, warmDir, e.Name())
		who, _ := keeper(machine) // which says it
		x.keeper = cmp.Or(who, x.keeper)
		things = append(things, x)
	}
	return c.carryOut(things, opts, func(x thing) error {
		if machine, ok := strings.CutSuffix(x.name, recordSuffix); ok && x.kind == KindRecord {
			switch who, err := keeper(machine); {
			case err != nil:
				return fmt.Errorf("look for its machine again: %w", err)
			case who != "":
				return fmt.Errorf("meanwhile %s", who)
			}
		}
		return c.remove(x)
	})
}

// collectMachines removes the directories of machines that nobody speaks of. A machine
// whose process lives is not garbage, whoever's it is: ending machines that belong to
// nobody is the business of the node's reconciliation.
func (c *Collector) collectMachines(ctx context.Context, opts Options, refs references) ([]Decision, error) {
	all, err := c.entries(machinesDir)
	if err != nil {
		return nil, err
	}
	accounted := c.accounted()
	builders := c.config.Snapshots.Builders()
	var things []thing
	for _, e := range all {
		if !e.IsDir() || vm.ValidateID(e.Name()) != nil {
			continue
		}
		x := c.thing(KindMachine, machinesDir, e.Name())
		who := refs.speaksOf(e.Name())
		aside, _ := c.aside(e.Name()) // which says it
		switch {
		case slices.Contains(accounted, e.Name()):
			x.keeper = "the node accounts for it"
		case aside != "":
			x.keeper = aside
		case slices.Contains(builders, e.Name()):
			x.keeper = "a snapshot is being built in it"
		case who != "":
			x.keeper = "the record of " + who + " names it"
		default:
			x.keeper = cmp.Or(working(x.path), x.keeper)
		}
		things = append(things, x)
	}
	return c.carryOut(things, opts, func(x thing) error {
		if c.config.Live != nil {
			return c.config.Live.Discard(ctx, x.name)
		}
		if who := working(x.path); who != "" {
			return errors.New(who)
		}
		return c.remove(x)
	})
}

// reasonAside is why what is in quarantine stays.
const reasonAside = "it is in quarantine: vk-firkin quarantine shows why, and removes it"

// aside is why a machine in quarantine stays, empty when it is not there. Where that cannot
// be told, it says so, with the error.
func (c *Collector) aside(machine string) (string, error) {
	switch _, err := c.config.FS.Lstat(filepath.Join(c.config.StateDir, asideDir, machine+recordSuffix)); {
	case err == nil:
		return reasonAside, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "whether it is in quarantine cannot be told: " + err.Error(), err
	}
	return "", nil
}

// accounted are the machines that the running node accounts for.
func (c *Collector) accounted() []string {
	if c.config.Live == nil {
		return nil
	}
	return c.config.Live.Machines()
}

// working tells of processes that work in a machine's directory, empty for none.
func working(dir string) string {
	found, err := process.In(dir, "")
	defer func() {
		for _, p := range found {
			p.Close()
		}
	}()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "" // removed meanwhile
	case err != nil:
		return "whether a process works in it cannot be told: " + err.Error()
	case len(found) > 0:
		return fmt.Sprintf("process %d works in it; the node decides what becomes of that", found[0].Identity().PID)
	}
	return ""
}

// measure is what a file or directory takes on disk, holes left out, and when something in
// it last changed. What vanishes meanwhile does not count; what cannot be looked at is an
// error: it may have changed just now.
func measure(fsys durable.FS, path string) (bytes int64, changed time.Time, err error) {
	info, err := fsys.Lstat(path)
	if err != nil {
		return 0, time.Time{}, notThere(err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
		bytes = st.Blocks * 512 // the unit of st_blocks, whatever the block size
	}
	changed = info.ModTime()
	if !info.IsDir() {
		return bytes, changed, nil
	}
	all, err := entries(fsys, path)
	for _, e := range all {
		b, at, merr := measure(fsys, filepath.Join(path, e.Name()))
		bytes, err = bytes+b, errors.Join(err, merr)
		if at.After(changed) {
			changed = at
		}
	}
	return bytes, changed, err
}
