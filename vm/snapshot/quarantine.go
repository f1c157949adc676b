// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// quarantineTime is the time in the name of a quarantined set. It sorts.
const quarantineTime = "20060102T150405.000000000Z"

// maxReason bounds the reason kept with a quarantined set.
const maxReason = 4 << 10

// quarantineRecord is reason.json.
type quarantineRecord struct {
	durable.Header
	Key      string    `json:"key"`
	Instance string    `json:"instance,omitempty"`
	Time     time.Time `json:"time"`
	Reason   string    `json:"reason"`
}

var quarantineFormat = durable.NewFormat(durable.FormatOptions[quarantineRecord]{
	Kind: "snapshot-quarantine", Version: 1, Unversioned: 1, MaxBytes: 8 * maxReason, Indent: true, // JSON makes six bytes of a control character
})

// Quarantine takes a snapshot out of use and keeps it for examination, with the
// reason. Machines that were restored from it go on; the next Ensure builds it
// anew. Errors: ErrNotFound, ErrReadOnly, ErrClosed.
func (s *Store) Quarantine(ctx context.Context, key, reason string) error {
	if err := s.writable(); err != nil {
		return err
	}
	if !isHex(key, keyLength) {
		return fmt.Errorf("quarantine %.80q: %w", key, ErrNotFound)
	}
	return s.quarantine(ctx, key, "", reason)
}

// quarantine takes one instance of a key out of use; an empty instance is whatever
// is there. When another instance has taken its place, there is nothing to do.
func (s *Store) quarantine(ctx context.Context, key, instance, reason string) error {
	f, err := s.claim(ctx, key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	known := s.sets[key]
	s.mu.Unlock()
	about := Event{Key: key}
	if known != nil {
		about = known.manifest.about(key)
		if instance != "" && known.manifest.Instance != instance {
			s.land(key, f, false, nil)
			return nil
		}
		if instance == "" {
			instance = known.manifest.Instance
		}
	} else if instance != "" {
		s.land(key, f, false, nil) // somebody else has quarantined it
		return nil
	}
	err = s.moveToQuarantine(key, instance, about, reason)
	s.land(key, f, false, nil) // those who wait look again
	return err
}

// claim makes the caller the only one to change a key, until land.
func (s *Store) claim(ctx context.Context, key string) (*flight, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		other := s.flights[key]
		if other == nil {
			f := &flight{done: make(chan struct{})}
			s.flights[key] = f
			s.mu.Unlock()
			return f, nil
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-other.done:
		}
	}
}

// moveToQuarantine does it, for the one who may change the key.
func (s *Store) moveToQuarantine(key, instance string, about Event, reason string) error {
	// From here on nothing is restored from it. It stays known, with what uses it, until its
	// files have moved: when they do not, the next Ensure tries again.
	s.condemn(key)
	if len(reason) > maxReason {
		reason = reason[:maxReason]
	}
	now := s.opts.Now().UTC()
	from := filepath.Join(s.dir, key)
	if instance == "" {
		if m, err := readManifest(from); err == nil {
			instance = m.Instance
		}
	}
	name := key + "-" + now.Format(quarantineTime)
	to := filepath.Join(s.dir, quarantineDir, name)
	if err := s.opts.FS.Rename(from, to); err != nil {
		if isNotExist(err) {
			s.drop(key)
			return fmt.Errorf("quarantine %s: %w", shortKey(key), ErrNotFound)
		}
		return fmt.Errorf("quarantine snapshot %s: %w", shortKey(key), err)
	}
	s.drop(key)
	s.mu.Lock()
	delete(s.failures, instance)
	s.mu.Unlock()
	s.opts.Logger.Warn("Quarantined snapshot", "snapshot", shortKey(key), "reason", reason)
	about.Type = EventQuarantined
	about.Message = fmt.Sprintf("Quarantined snapshot %s, it will be built again: %s", shortKey(key), reason)
	s.emit(about)
	err := quarantineFormat.Write(s.opts.FS, filepath.Join(to, reasonName), quarantineRecord{Key: key, Instance: instance, Time: now, Reason: reason}, durable.Synced)
	if err = errors.Join(err, s.opts.FS.SyncDir(filepath.Dir(to)), s.opts.FS.SyncDir(s.dir)); err != nil {
		// It is out of use, which is what counts; the reason is in the event.
		s.opts.Logger.Error("Keeping a quarantined snapshot without its reason", "snapshot", shortKey(key), "error", err)
	}
	return nil
}

// condemn refuses further restores from the loaded set of a key.
func (s *Store) condemn(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.sets[key]; known != nil {
		known.gone = true
	}
}

// drop forgets the loaded set of a key. Pins of it still keep its files.
func (s *Store) drop(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.sets[key]; known != nil {
		known.gone = true
		delete(s.sets, key)
		delete(s.verified, known.manifest.Instance)
		delete(s.failures, known.manifest.Instance)
	}
}

// readQuarantine reads the reason of a quarantined set. What cannot be read is
// taken from the directory's name.
func readQuarantine(dir, name string) quarantineRecord {
	key, stamp, _ := strings.Cut(name, "-")
	r := quarantineRecord{Key: key}
	if t, err := time.Parse(quarantineTime, stamp); err == nil {
		r.Time = t
	}
	read, err := quarantineFormat.Read(durable.Host, filepath.Join(dir, name, reasonName))
	if err != nil || read.Key != key {
		return r
	}
	return read
}

// quarantined lists the names of quarantined sets, sorted.
func (s *Store) quarantined() ([]string, error) {
	entries, err := s.opts.FS.ReadDir(filepath.Join(s.dir, quarantineDir))
	if isNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read quarantine: %w", err)
	}
	var names []string
	for _, e := range entries {
		key, _, _ := strings.Cut(e.Name(), "-")
		if e.IsDir() && isHex(key, keyLength) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
