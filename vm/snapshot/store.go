// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Names in a store.
const (
	refsDir         = ".refs"
	quarantineDir   = ".quarantine"
	buildingPrefix  = ".building-"
	removingPrefix  = ".removing-"
	builderIDPrefix = "build-"
	reasonName      = "reason.json"
)

// Store is the snapshots of one node. All methods are safe for concurrent use. At
// most one process has a store open for writing; any number may look at it.
type Store struct {
	dir      string
	opts     Options
	driver   vm.Driver     // nil: no building, no restoring
	features vm.Features   // of driver
	lock     *durable.Lock // nil: read-only
	builds   chan struct{}

	ctx    context.Context //nolint:containedctx // the lifetime of the store's own goroutines, ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	closed   bool               // guarded by mu
	sets     map[string]*set    // guarded by mu; verified in this process, by key
	flights  map[string]*flight // guarded by mu; at most one change of a key at a time
	refs     map[string]Reference
	pins     map[string]pin       // guarded by mu; sets that this process uses, by instance
	failures map[string]int       // guarded by mu; restores failed in a row, by instance
	builders map[string]bool      // guarded by mu; machines of builds under way
	verified map[string]time.Time // guarded by mu; when this process read all files of a set, by instance
	sealKeys map[string][]byte    // guarded by mu; of the sets that machines came from, by instance

	dirs     durable.Dirs // of references
	failedMu sync.Mutex   // held while failures are written
}

// pin is how often this process uses a set. It outlives the set's name: who restores from
// one that is quarantined meanwhile needs its files still.
type pin struct {
	key string
	n   int
}

// set is a published set that this process has verified.
type set struct {
	dir      string
	manifest Manifest
	sealKey  []byte

	gone bool // guarded by Store.mu; quarantined, to be quarantined, or removed
}

func (s *set) machineDir() string { return filepath.Join(s.dir, machineDir) }

// flight is one change of a key under way. done closes when it is over.
type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc // nil for one that is not a build
	waiters int                // guarded by Store.mu
	// abandoned: nobody waited any more, so it was cancelled; guarded by Store.mu.
	abandoned bool
	build     bool  // it built a snapshot; valid after done
	err       error // valid after done
}

// Open opens the store for writing and creates it when it is absent. It takes the
// store's lock until Close, deletes what a crashed process left half done, and
// drops the references of machines that the driver no longer has.
//
// Errors: ErrLocked, vm.ErrNotSupported for a driver without snapshots.
func Open(ctx context.Context, dir string, opts Options) (*Store, error) {
	opts = opts.withDefaults()
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("open snapshot store: %w: path %q is not absolute", vm.ErrInvalidConfig, dir)
	}
	if opts.Driver != nil {
		if err := checkDriver(opts.Driver); err != nil {
			return nil, fmt.Errorf("open snapshot store: %w", err)
		}
	}
	for _, d := range []string{dir, filepath.Join(dir, refsDir), filepath.Join(dir, quarantineDir)} {
		if err := durable.MakeDir(opts.FS, d, durable.Synced); err != nil {
			return nil, fmt.Errorf("open snapshot store: %w", err)
		}
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	s := newStore(dir, opts)
	s.lock = lock
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshot store: %w", err), s.Close())
	}
	return s, nil
}

// OpenReadOnly opens the store to look at it: List, Inspect and Verify work, also
// while a node runs; everything else is ErrReadOnly. A store that does not exist
// is empty.
func OpenReadOnly(dir string, opts Options) (*Store, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("open snapshot store: %w: path %q is not absolute", vm.ErrInvalidConfig, dir)
	}
	s := newStore(dir, opts.withDefaults())
	s.driver = nil
	return s, nil
}

func newStore(dir string, opts Options) *Store {
	s := &Store{
		dir:      dir,
		opts:     opts,
		driver:   opts.Driver,
		builds:   make(chan struct{}, opts.Builds),
		sets:     make(map[string]*set),
		flights:  make(map[string]*flight),
		refs:     make(map[string]Reference),
		pins:     make(map[string]pin),
		failures: make(map[string]int),
		builders: make(map[string]bool),
		sealKeys: make(map[string][]byte),
		verified: make(map[string]time.Time),
	}
	if s.driver != nil {
		s.features = s.driver.Features()
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends builds under way, waits for the store's goroutines and gives the lock
// back. Machines and sets stay. Idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock == nil {
		return nil
	}
	lock := s.lock
	s.lock = nil
	if err := lock.Close(); err != nil {
		return fmt.Errorf("close snapshot store: %w", err)
	}
	return nil
}

// Dir is the directory of the store.
func (s *Store) Dir() string { return s.dir }

// Builders returns the ids of the machines that are building a snapshot now,
// sorted. They belong to the store: nobody else may delete them.
func (s *Store) Builders() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.builders))
	for id := range s.builders {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// recover deletes what a crash left and loads the references.
func (s *Store) recover(ctx context.Context) error {
	entries, err := s.opts.FS.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, buildingPrefix):
			switch err := s.removeBuilding(ctx, name); {
			case err == nil:
			case errors.Is(err, errBuilderMayExist):
				s.opts.Logger.Info("Leaving an unfinished snapshot to the node", "name", name, "reason", err)
			default: // kept, and tried again at the next start
				s.opts.Logger.Error("Leaving an unfinished snapshot behind", "name", name, "error", err)
			}
		case strings.HasPrefix(name, removingPrefix), strings.HasPrefix(name, durable.TempPrefix):
			if err := s.opts.FS.RemoveAll(filepath.Join(s.dir, name)); err != nil {
				s.opts.Logger.Error("Leaving a deleted snapshot behind", "name", name, "error", err)
			}
		}
	}
	if err := s.loadReferences(ctx); err != nil {
		return err
	}
	s.loadFailures()
	return s.sweepReferenceDirs()
}

// errBuilderMayExist: the directory of a build stays, since it is the only record of a machine
// that only a node can delete. Nothing is wrong with that.
var errBuilderMayExist = errors.New("its machine may exist, which the node deletes")

// removeBuilding deletes a build directory and the machine that filled it. errBuilderMayExist:
// nobody here can delete that.
func (s *Store) removeBuilding(ctx context.Context, name string) error {
	if err := s.builderIsGone(ctx, name); err != nil {
		return err
	}
	id := builderIDPrefix + strings.TrimPrefix(name, buildingPrefix)
	if s.driver != nil && vm.ValidateID(id) == nil {
		ctx, cancel := context.WithTimeout(ctx, s.opts.Timeouts.Delete)
		defer cancel()
		m, err := s.driver.Load(ctx, id)
		switch {
		case errors.Is(err, vm.ErrNotFound):
		case err != nil:
			return fmt.Errorf("load builder %q: %w", id, err)
		default:
			if err := m.Delete(ctx); err != nil {
				return fmt.Errorf("delete builder %q: %w", id, err)
			}
		}
	}
	return s.opts.FS.RemoveAll(filepath.Join(s.dir, name))
}

// builderIsGone is nil unless the machine of a build may exist and nobody here can delete it.
func (s *Store) builderIsGone(ctx context.Context, name string) error {
	if s.driver != nil {
		return nil
	}
	id := builderIDPrefix + strings.TrimPrefix(name, buildingPrefix)
	known, asked, err := s.machines(ctx)
	if err == nil && asked && slices.Contains(known, id) || !asked {
		return fmt.Errorf("%w: %s", errBuilderMayExist, id)
	}
	return err
}

// machines lists the machines of the host; asked is false when there is nobody to ask.
func (s *Store) machines(ctx context.Context) (known []string, asked bool, err error) {
	list := s.opts.Machines
	if s.driver != nil {
		list = s.driver.List
	}
	if list == nil {
		return nil, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeouts.Call)
	defer cancel()
	known, err = list(ctx)
	return known, true, err
}

// checkDisk is the disk floor, of which what is expected to be written must not take
// anything: exactly as much passes.
func (s *Store) checkDisk(expected int64) error {
	if s.opts.MinFreeBytes < 0 {
		return nil
	}
	free, err := s.opts.FreeBytes(s.dir)
	if err != nil {
		return err
	}
	if floor := s.opts.MinFreeBytes + expected; free < floor {
		return &DiskPressureError{Free: free, Floor: floor}
	}
	return nil
}

// writable tells why the store cannot be changed, nil if it can.
func (s *Store) writable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case s.lock == nil:
		return ErrReadOnly
	}
	return nil
}

func (s *Store) emit(e Event) { s.opts.OnEvent(e) }

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
