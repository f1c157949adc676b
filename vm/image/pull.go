// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// PullOptions of one pull.
type PullOptions struct {
	// Policy; empty means PullIfNotPresent.
	Policy Policy
	// MacOS: the image is to be an installation of macOS. What is not of the kind that was
	// asked for is ErrWrongKind, before anything but its manifest is downloaded.
	MacOS bool
	// Auth finds credentials, see KeychainFromSecrets. nil means anonymous access.
	Auth authn.Keychain
}

// Image is a converted image, pinned against garbage collection until Release.
type Image struct {
	// Ref is the full name it was asked for by, empty after Pin.
	Ref string
	// RepoDigest is the repository and the manifest's digest, a container status's
	// imageID. Empty after Pin.
	RepoDigest string
	// Digest of the manifest, "sha256:...", the image's key.
	Digest string
	// ID is the digest of the image's configuration.
	ID string
	// Architecture in GOARCH terms.
	Architecture string
	// DiskPath is a read-only ext4 file system without a partition table, exactly
	// Options.SlotBytes long, or the raw disk of a macOS installation. It never changes.
	DiskPath string
	// MacOS is what else belongs to a macOS installation; nil for a container image.
	MacOS *MacOS
	// SizeBytes is what the disk costs.
	SizeBytes int64
	Config    Config

	release func()
}

// Release gives up the pin. It is idempotent and may be called on nil.
func (i *Image) Release() {
	if i != nil && i.release != nil {
		i.release()
	}
}

// Pull makes the image available and pins it. It blocks for as long as download
// and conversion take; ctx bounds that. Pulls of one image at the same time share
// the work, which goes on as long as one of them waits. Errors are those of
// errors.go, or ctx's.
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) (*Image, error) {
	img, err := s.pull(ctx, ref, opts)
	if err != nil {
		return nil, fmt.Errorf("pull image %.256q: %w", ref, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, reference string, opts PullOptions) (*Image, error) {
	if s.collectOnly {
		return nil, fmt.Errorf("%w: the store was opened to collect only", ErrInvalidOptions)
	}
	ref, err := parseReference(reference, s.guard.insecure)
	if err != nil {
		return nil, err
	}
	switch opts.Policy {
	case PullAlways, PullIfNotPresent, PullNever, "":
	default:
		return nil, fmt.Errorf("%w: pull policy %q", ErrInvalidOptions, opts.Policy)
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if opts.Policy != PullAlways {
		l, err := s.cached(ref)
		if err != nil {
			return nil, err
		}
		if l != nil {
			if err := checkKind(l.record.MacOS != nil, opts.MacOS); err != nil {
				l.release()
				return nil, err
			}
			return s.image(l, ref), nil
		}
		if opts.Policy == PullNever {
			return nil, ErrNeverPull
		}
	}
	creds, err := candidates(opts.Auth, ref.Context())
	if err != nil {
		return nil, err
	}
	key, err := flightKey(ref, creds, opts.MacOS)
	if err != nil {
		return nil, err
	}
	var img *Image
	err = s.pulls.do(ctx, s.ctx, key,
		func(ctx context.Context) (*lease, error) { return s.fetch(ctx, ref, creds, opts.MacOS) },
		func(l *lease) error {
			mine, err := s.acquire(l.digest)
			if err == nil {
				img = s.image(mine, ref)
			}
			return err
		},
		(*lease).release)
	if err != nil && s.ctx.Err() != nil && ctx.Err() == nil {
		return nil, ErrClosed
	}
	return img, err
}

// flightKey is equal for pulls that may share an answer: who has other
// credentials must show that they are good.
func flightKey(ref name.Reference, creds []authn.AuthConfig, macOS bool) (string, error) {
	b, err := json.Marshal(creds)
	if err != nil {
		return "", fmt.Errorf("compare credentials: %w", err)
	}
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%s %x %t", ref.Name(), sum, macOS), nil
}

// cached returns a lease on what ref was resolved to earlier, nil if nothing.
func (s *Store) cached(ref name.Reference) (*lease, error) {
	digest := ""
	r, err := s.readRef(ref.Name())
	if err != nil {
		return nil, err
	}
	if r != nil {
		digest = r.Digest
	} else if d, ok := ref.(name.Digest); ok {
		digest = d.DigestStr()
	}
	if digest == "" {
		return nil, nil
	}
	l, err := s.acquire(digest)
	if errors.Is(err, errAbsent) {
		return nil, nil
	}
	return l, err
}

// fetch resolves ref with the registry and makes its image present. Credentials
// are tried in turn.
func (s *Store) fetch(ctx context.Context, ref name.Reference, creds []authn.AuthConfig, macOS bool) (*lease, error) {
	var last error
	for _, auth := range creds {
		c, err := newClient(s.guard, ref.Context(), auth)
		if err != nil {
			return nil, err
		}
		l, err := s.fetchAs(ctx, c, ref, macOS)
		if err == nil {
			return l, nil
		}
		last = err
		if !errors.Is(err, ErrUnauthorized) && !errors.Is(err, ErrNotFound) {
			break
		}
	}
	return nil, localError(ctx, last)
}

func (s *Store) fetchAs(ctx context.Context, c *client, ref name.Reference, macOS bool) (*lease, error) {
	target, err := c.target(ctx, ref)
	var network net.Error
	switch {
	case err == nil:
		if r, err := s.readRef(ref.Name()); err != nil {
			return nil, err
		} else if r != nil && r.Target == target {
			if l, err := s.acquire(r.Digest); !errors.Is(err, errAbsent) {
				if err == nil {
					if err = checkKind(l.record.MacOS != nil, macOS); err != nil {
						l.release()
						l = nil
					}
				}
				return l, err
			}
		}
	case ctx.Err() != nil, errors.Is(err, ErrUnauthorized), errors.As(err, &network):
		return nil, err
	default:
		// Not every registry answers HEAD well. GET tells more, also about errors.
	}
	m, err := c.resolve(ctx, ref, s.opts.Arch, s.opts.Limits, macOS)
	if err != nil {
		return nil, err
	}
	var mine *lease
	err = s.builds.do(ctx, s.ctx, m.digest,
		func(ctx context.Context) (*lease, error) { return s.build(ctx, c, m) },
		func(l *lease) (err error) { mine, err = s.acquire(l.digest); return err },
		(*lease).release)
	if err != nil {
		return nil, err
	}
	err = s.writeRef(refRecord{Ref: ref.Name(), Architecture: s.opts.Arch, Target: m.target, Digest: m.digest})
	if err != nil {
		mine.release()
		return nil, fmt.Errorf("remember what the reference stands for: %w", err)
	}
	return mine, nil
}

// lease is one pin of an image.
type lease struct {
	digest string
	record record
	path   string
	give   func()
}

func (l *lease) release() {
	if l != nil {
		l.give()
	}
}

func (s *Store) image(l *lease, ref name.Reference) *Image {
	img := &Image{
		Digest:       l.record.Digest,
		ID:           l.record.ConfigDigest,
		Architecture: l.record.Architecture,
		DiskPath:     filepath.Join(l.path, diskName),
		SizeBytes:    l.record.SizeBytes,
		Config:       l.record.Config,
		release:      l.give,
	}
	if m := l.record.MacOS; m != nil {
		img.DiskPath = filepath.Join(l.path, macOSDiskName)
		img.MacOS = &MacOS{
			AuxiliaryStorage: filepath.Join(l.path, macOSAuxiliaryName),
			HardwareModel:    bytes.Clone(m.HardwareModel), MachineIdentifier: bytes.Clone(m.MachineIdentifier),
		}
	}
	if ref != nil {
		img.Ref = displayName(ref.Name())
		img.RepoDigest = displayName(ref.Context().Name()) + "@" + img.Digest
	}
	return img
}

var errAbsent = errors.New("image is not present")

// acquire pins an image that is present, else returns errAbsent.
func (s *Store) acquire(digest string) (*lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.hold(digest)
	if err != nil {
		return nil, err
	}
	e.leases++
	return &lease{digest: digest, record: e.record, path: e.path, give: sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		e.leases--
		s.letGo(e)
	})}, nil
}

// hold returns the entry of an image with its lock taken. s.mu is held.
func (s *Store) hold(digest string) (*entry, error) {
	e, ok := s.images[digest]
	if !ok {
		// Another process may have pulled it.
		var err error
		e, err = s.read(digest)
		if errors.Is(err, errUnusable) || errors.Is(err, errOtherArch) {
			return nil, errAbsent
		}
		if err != nil {
			return nil, err
		}
	}
	if e.lock == nil {
		l, err := lockEntry(filepath.Join(e.path, recordName))
		if err != nil {
			delete(s.images, digest)
			return nil, err
		}
		e.lock = l
	}
	s.images[digest] = e
	e.lastUsed = s.opts.Now()
	touch(filepath.Join(e.path, recordName), e.lastUsed)
	return e, nil
}

// letGo gives up the lock of an entry that nobody pins any more. s.mu is held.
func (s *Store) letGo(e *entry) {
	if e.pinned() || e.lock == nil {
		return
	}
	e.lastUsed = s.opts.Now()
	touch(filepath.Join(e.path, recordName), e.lastUsed)
	_ = e.lock.Close() // a descriptor that was only read
	e.lock = nil
}

// lockEntry takes the shared lock that keeps other processes from removing an
// image. errAbsent means they have.
func lockEntry(path string) (*durable.Lock, error) {
	l, err := durable.LockFile(path, durable.LockOptions{Shared: true})
	if errors.Is(err, durable.ErrLocked) || errors.Is(err, fs.ErrNotExist) {
		return nil, errAbsent
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// refPath is where a reference's record is. Names contain slashes and more.
func (s *Store) refPath(ref string) string {
	sum := sha256.Sum256([]byte(s.opts.Arch + " " + ref))
	return filepath.Join(s.dir, refsName, hex.EncodeToString(sum[:])+".json")
}

// readRef returns nil when the reference is unknown.
func (s *Store) readRef(ref string) (*refRecord, error) {
	r, err := refFormat.Read(s.fsys, s.refPath(ref))
	switch {
	case errors.Is(err, fs.ErrNotExist), durable.Unusable(err):
		return nil, nil // or damaged: asking the registry again mends it
	case err != nil:
		return nil, err
	case r.Ref != ref || r.Architecture != s.opts.Arch:
		return nil, nil // not ours
	}
	return &r, nil
}

func (s *Store) writeRef(r refRecord) error {
	if old, err := s.readRef(r.Ref); err == nil && old != nil && old.same(r) {
		return nil
	}
	return s.exclusive(func() error { return refFormat.Write(s.fsys, s.refPath(r.Ref), r, durable.Synced) })
}

// refs lists the readable reference records of this architecture, and the names
// of files that are leftovers or damaged.
func (s *Store) refs() (good []refRecord, bad []string, err error) {
	all, err := s.fsys.ReadDir(filepath.Join(s.dir, refsName))
	if s.collectOnly && errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, d := range all {
		path := filepath.Join(s.dir, refsName, d.Name())
		if strings.HasPrefix(d.Name(), tmpPrefix) {
			bad = append(bad, path)
			continue
		}
		r, err := refFormat.Read(s.fsys, path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, durable.ErrNewer): // that one may come back
		case durable.Unusable(err):
			bad = append(bad, path)
		case err != nil:
			return nil, nil, err
		case s.collectOnly || r.Architecture == s.opts.Arch:
			good = append(good, r)
		}
	}
	return good, bad, nil
}

// sweepRefs removes damaged records and leftovers. The directory's lock is held.
func (s *Store) sweepRefs() error {
	_, bad, err := s.refs()
	if err != nil {
		return err
	}
	for _, path := range bad {
		if err := s.fsys.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// randomName makes names of temporary directories unique.
func randomName() string {
	return strings.ToLower(rand.Text()[:16])
}
