// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Options of a store.
type Options struct {
	// SlotBytes is the length of every disk: the drivers' Features.SlotBytes. A
	// positive multiple of 4096. Required.
	SlotBytes int64
	// Arch is the guest's architecture in GOARCH terms. Default: the host's.
	Arch string
	// InsecureRegistries are spoken to in plain HTTP, as "host" or "host:port".
	// All others only by TLS, loopback included.
	InsecureRegistries []string
	// ParallelPulls bounds how many images are downloaded and converted at once. 2.
	ParallelPulls int
	// MinFreeBytes must stay free on the cache's file system, or a pull is refused
	// with ErrNoSpace. 0 means no floor.
	MinFreeBytes int64
	// FreeBytes tells how much is free. Default: asks the file system of dir.
	FreeBytes func() (int64, error)
	Timeouts  Timeouts
	Limits    Limits
	// Logger; nil discards.
	Logger *slog.Logger
	// Now is the clock for "last used". Default: time.Now.
	Now func() time.Time

	// FS is the disk. Default: durable.Host.
	FS durable.FS

	retryDelay time.Duration // tests do not wait
}

const minSlotBytes = 1 << 20

func (o Options) withDefaults(dir string) (Options, error) {
	var errs []error
	if o.SlotBytes < minSlotBytes || o.SlotBytes%blockBytes != 0 {
		errs = append(errs, fmt.Errorf("%w: SlotBytes %d, want a multiple of %d from %d", ErrInvalidOptions, o.SlotBytes, blockBytes, minSlotBytes))
	}
	if o.ParallelPulls < 0 || o.MinFreeBytes < 0 {
		errs = append(errs, fmt.Errorf("%w: ParallelPulls %d, MinFreeBytes %d, want none negative", ErrInvalidOptions, o.ParallelPulls, o.MinFreeBytes))
	}
	if dir == "" {
		errs = append(errs, fmt.Errorf("%w: no directory", ErrInvalidOptions))
	}
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	if o.ParallelPulls == 0 {
		o.ParallelPulls = 2
	}
	if o.FreeBytes == nil {
		o.FreeBytes = func() (int64, error) { return freeBytes(dir) }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FS == nil {
		o.FS = durable.Host
	}
	if o.retryDelay == 0 {
		o.retryDelay = retryDelay
	}
	o.Timeouts = o.Timeouts.withDefaults()
	o.Limits = o.Limits.withDefaults(o.SlotBytes)
	return o, errors.Join(errs...)
}

// Store is a directory of converted images. All methods may be called from many
// goroutines at once.
type Store struct {
	dir    string
	opts   Options
	guard  *guard
	fsys   durable.FS
	pulls  flights[*lease] // by reference, policy and credentials
	builds flights[*lease] // by digest
	slots  chan struct{}

	// collectOnly: the images may be of any kind, and none is pulled.
	collectOnly bool

	ctx    context.Context //nolint:containedctx // the lifetime of the store's own work, ended by Close
	cancel context.CancelFunc

	dirMu sync.Mutex // before the directory's lock, so that only processes poll for it

	mu     sync.Mutex
	images map[string]*entry // by digest
	closed bool
}

// entry is a complete image on disk and its pins. Store.mu guards it.
type entry struct {
	record
	path     string
	lastUsed time.Time
	leases   int                 // handed out, not yet released
	owners   map[string]struct{} // Pin
	lock     io.Closer           // held against other processes while pinned
}

func (e *entry) pinned() bool { return e.leases > 0 || len(e.owners) > 0 }

// Open opens the store in dir, which it makes if need be. It removes what pulls
// that died have left behind and images that are incomplete or of another slot
// size. Nothing is pinned afterwards: owners pin again what they use, before they
// collect garbage. Errors are ErrInvalidOptions, or those of the file system.
func Open(dir string, opts Options) (*Store, error) {
	if dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
		dir = abs
	}
	opts, err := opts.withDefaults(dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	insecure := map[string]bool{}
	for _, h := range opts.InsecureRegistries {
		insecure[h] = true
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{
		dir: dir, opts: opts, fsys: opts.FS,
		guard:  newGuard(opts.Timeouts, insecure),
		slots:  make(chan struct{}, opts.ParallelPulls),
		images: map[string]*entry{},
		ctx:    ctx, cancel: cancel,
	}
	s.guard.retryDelay = opts.retryDelay
	if err := s.load(); err != nil {
		cancel()
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	return s, nil
}

// OpenForCollection opens the store in dir to list and collect only, whatever slot size and
// architecture its images are of; dir need not exist. It changes nothing by itself, and
// leaves to Open what cannot be read. Of the options only Logger and Now count.
func OpenForCollection(dir string, opts Options) (*Store, error) {
	opts.SlotBytes = minSlotBytes
	opts, err := opts.withDefaults(dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{
		dir: dir, opts: opts, fsys: opts.FS, collectOnly: true, guard: newGuard(opts.Timeouts, nil),
		images: map[string]*entry{}, ctx: ctx, cancel: cancel,
	}
	all, err := s.fsys.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		cancel()
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	for _, d := range all {
		if !validHex(d.Name()) {
			continue
		}
		if e, err := s.read(digestPrefix + d.Name()); err == nil {
			s.images[e.Digest] = e
		} else {
			s.opts.Logger.Warn("Leaving an image to the node", "digest", digestPrefix+d.Name(), "error", err)
		}
	}
	return s, nil
}

// Close cancels pulls under way, waits for them, and gives up all pins. Images
// stay on disk. Close is idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.pulls.close()
	s.builds.close()
	s.guard.inner.CloseIdleConnections()
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range s.images {
		if e.lock != nil {
			errs = append(errs, e.lock.Close())
			e.lock = nil
		}
	}
	return errors.Join(errs...)
}

// Names in the store's directory.
const (
	diskName    = "disk.ext4"
	recordName  = "image.json"
	refsName    = "refs"
	lockName    = ".lock"
	ownerName   = "owner.lock"
	tmpPrefix   = durable.TempPrefix
	trashPrefix = ".trash-"
)

// How long another process may hold the directory's lock, which it does for
// the time of a few renames and unlinks, and how often to look.
const (
	lockPatience = 30 * time.Second
	lockPoll     = 5 * time.Millisecond
)

// exclusive runs do while no other process, and no other store of this one,
// makes or removes directories here.
func (s *Store) exclusive(do func() error) error {
	s.dirMu.Lock()
	defer s.dirMu.Unlock()
	path := filepath.Join(s.dir, lockName)
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(lockPoll) { //nolint:forbidigo // a lock of another process makes no event when it becomes free
		l, err := durable.LockFile(path, durable.LockOptions{Create: true})
		if err == nil {
			return errors.Join(do(), l.Close())
		}
		if !errors.Is(err, durable.ErrLocked) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("another process has held %s for %s", path, lockPatience)
		}
	}
}

// load sweeps the directory and lists the images in it.
func (s *Store) load() error {
	if err := durable.MakeDir(s.fsys, filepath.Join(s.dir, refsName), durable.Synced); err != nil {
		return err
	}
	return s.exclusive(func() error {
		all, err := s.fsys.ReadDir(s.dir)
		if err != nil {
			return err
		}
		for _, d := range all {
			path := filepath.Join(s.dir, d.Name())
			switch {
			case strings.HasPrefix(d.Name(), tmpPrefix), strings.HasPrefix(d.Name(), trashPrefix):
				if _, err := s.sweep(path, false); err != nil {
					return err
				}
			case validHex(d.Name()):
				e, err := s.read(digestPrefix + d.Name())
				switch {
				case err == nil:
					s.images[e.Digest] = e
				case errors.Is(err, errOtherArch):
				case errors.Is(err, durable.ErrNewer):
					// That one may come back. Until then it is pulled again if it is wanted.
					s.opts.Logger.Warn("Leaving an image that cannot be used", "digest", digestPrefix+d.Name(), "error", err)
				case errors.Is(err, errUnusable):
					s.opts.Logger.Warn("Removing unusable image", "digest", digestPrefix+d.Name(), "error", err)
					if err := s.discard(path); err != nil && !errors.Is(err, durable.ErrLocked) {
						return err
					}
				default:
					return err
				}
			}
		}
		return s.sweepRefs()
	})
}

// sweep removes a temporary directory, or only says that it would, unless its owner lives.
func (s *Store) sweep(path string, dryRun bool) (bool, error) {
	l, err := durable.LockFile(filepath.Join(path, ownerName), durable.LockOptions{Create: true})
	if errors.Is(err, durable.ErrLocked) {
		return false, nil
	}
	if err == nil {
		defer func() { _ = l.Close() }()
	}
	if dryRun {
		return true, nil
	}
	s.opts.Logger.Info("Removing leftover of an interrupted pull", "path", path)
	return true, s.fsys.RemoveAll(path)
}

// errUnusable: what is in an image's place is no image of this store's kind.
// errOtherArch: it is one of another guest architecture, and none of our business.
var (
	errUnusable  = errors.New("unusable image")
	errOtherArch = errors.New("image of another architecture")
)

// read checks an image on disk and returns its entry, unpinned.
func (s *Store) read(digest string) (*entry, error) {
	hex, err := digestHex(digest)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, hex)
	r, err := recordFormat.Read(s.fsys, filepath.Join(path, recordName))
	if errors.Is(err, fs.ErrNotExist) || durable.Unusable(err) {
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	}
	if err != nil {
		return nil, err
	}
	if r.Digest != digest || !s.collectOnly && r.MacOS == nil && r.SlotBytes != s.opts.SlotBytes {
		return nil, fmt.Errorf("%w: it is %s in a slot of %d bytes", errUnusable, r.Digest, r.SlotBytes)
	}
	if !s.collectOnly && r.Architecture != s.opts.Arch {
		return nil, fmt.Errorf("%w: %s", errOtherArch, r.Architecture)
	}
	for name, want := range r.files() {
		st, err := s.fsys.Lstat(filepath.Join(path, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", errUnusable, err)
		}
		if err != nil {
			return nil, err
		}
		if !st.Mode().IsRegular() || st.Size() != want {
			return nil, fmt.Errorf("%w: %s has %d bytes, want %d", errUnusable, name, st.Size(), want)
		}
	}
	used := r.Created
	if st, err := s.fsys.Lstat(filepath.Join(path, recordName)); err == nil {
		used = st.ModTime()
	}
	return &entry{record: r, path: path, lastUsed: used}, nil
}

// discard moves an image out of sight at once, then removes it. One that another
// process has pinned it leaves alone and returns durable.ErrLocked.
func (s *Store) discard(path string) error {
	l, err := durable.LockFile(filepath.Join(path, recordName), durable.LockOptions{})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		defer func() { _ = l.Close() }()
	}
	trash := filepath.Join(s.dir, trashPrefix+filepath.Base(path)+"-"+randomName())
	if err := s.fsys.Rename(path, trash); err != nil {
		return err
	}
	// Not before it has lost its name for good: half of it must not come back under it.
	if err := s.fsys.SyncDir(s.dir); err != nil {
		return err
	}
	return s.fsys.RemoveAll(trash)
}
