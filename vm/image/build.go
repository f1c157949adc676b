// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// parallelLayers of one image are downloaded at once: enough to hide a round
// trip, not enough to annoy a registry.
const parallelLayers = 3

// build downloads an image and converts it, unless it is there. It returns a
// lease on it. Whatever goes wrong leaves nothing that a later pull could take for an
// image.
func (s *Store) build(ctx context.Context, c *client, m *manifest) (*lease, error) {
	if l, err := s.acquire(m.digest); !errors.Is(err, errAbsent) {
		return l, err
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := s.room(m.compressedBytes()); err != nil {
		return nil, err
	}
	started := s.opts.Now()
	s.opts.Logger.Info("Pulling image", "repository", c.repo.Name(), "digest", m.digest, "bytes", m.compressedBytes())

	if isMacOS(&m.Manifest) {
		if err := s.buildMacOS(ctx, c, m); err != nil {
			return nil, err
		}
		return s.built(c, m, started)
	}
	var config bytes.Buffer
	if err := c.blob(ctx, m.Config, &config, func() error { config.Reset(); return nil }); err != nil {
		return nil, err
	}
	cfg, os, arch, err := decodeConfig(config.Bytes())
	if err != nil {
		return nil, err
	}
	// Before any layer: a wrong image costs nothing.
	if err := checkPlatform(os, arch, s.opts.Arch); err != nil {
		return nil, err
	}

	tmp, done, err := s.tempDir()
	if err != nil {
		return nil, fmt.Errorf("make temporary directory: %w", err)
	}
	defer done()
	layers, err := s.download(ctx, c, m, tmp)
	if err != nil {
		return nil, err
	}
	t, err := index(ctx, layers, s.opts.Limits)
	if err != nil {
		return nil, err
	}
	if err := s.room(t.bytes); err != nil {
		return nil, err
	}
	out := filepath.Join(tmp, "image")
	if err := s.fsys.Mkdir(out); err != nil {
		return nil, err
	}
	used, err := s.writeDisk(ctx, t, layers, filepath.Join(out, diskName))
	if err != nil {
		return nil, err
	}
	r := record{
		Digest: m.digest, ConfigDigest: m.Config.Digest.String(), Architecture: arch,
		SlotBytes: s.opts.SlotBytes, SizeBytes: used, Created: s.opts.Now().UTC(), Config: cfg,
	}
	b, err := recordFormat.Encode(r)
	if err != nil {
		return nil, corrupt("configuration: %w", err)
	}
	if err := durable.WriteNew(s.fsys, filepath.Join(out, recordName), b, durable.Synced); err != nil {
		return nil, fmt.Errorf("write %s: %w", recordName, err)
	}
	if err := s.publish(out, m.digest); err != nil {
		return nil, fmt.Errorf("publish: %w", err)
	}
	return s.built(c, m, started)
}

// built takes a lease on an image that was published.
func (s *Store) built(c *client, m *manifest, started time.Time) (*lease, error) {
	l, err := s.acquire(m.digest)
	if errors.Is(err, errAbsent) {
		return nil, fmt.Errorf("%w: another process removed the image as soon as it was there", ErrUnavailable)
	}
	if err == nil {
		s.opts.Logger.Info("Pulled image", "repository", c.repo.Name(), "digest", m.digest, "diskBytes", l.record.SizeBytes, "seconds", s.opts.Now().Sub(started).Seconds())
	}
	return l, err
}

// room reports ErrNoSpace when need more bytes would leave less than the floor.
func (s *Store) room(need int64) error {
	free, err := s.opts.FreeBytes()
	if err != nil {
		return err
	}
	if free-s.opts.MinFreeBytes < need {
		return fmt.Errorf("%w: %d bytes are free in %s, %d are to stay free and the image needs up to %d; free some, or collect unused images",
			ErrNoSpace, free, s.dir, s.opts.MinFreeBytes, need)
	}
	return nil
}

// tempDir makes a temporary directory that other processes can see is in use.
// done removes it.
func (s *Store) tempDir() (path string, done func(), err error) {
	path = filepath.Join(s.dir, tmpPrefix+randomName())
	var l *durable.Lock
	err = s.exclusive(func() error {
		if err := s.fsys.Mkdir(path); err != nil {
			return err
		}
		l, err = durable.LockFile(filepath.Join(path, ownerName), durable.LockOptions{Create: true})
		return err
	})
	done = func() {
		if err := s.fsys.RemoveAll(path); err != nil {
			s.opts.Logger.Warn("Cannot remove temporary directory now, the next start will", "path", path, "error", err)
		}
		if l != nil {
			_ = l.Close() // an empty file
		}
	}
	if err != nil {
		done()
		return "", nil, err
	}
	return path, done, nil
}

// download puts the image's layers into dir and checks them.
func (s *Store) download(ctx context.Context, c *client, m *manifest, dir string) ([]opener, error) {
	layers := make([]opener, len(m.Layers))
	seen := map[string]bool{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for i, d := range m.Layers {
		path := filepath.Join(dir, d.Digest.Hex)
		layers[i] = func() (io.ReadCloser, error) {
			r, err := s.fsys.OpenFile(path, os.O_RDONLY)
			if err != nil {
				return nil, localFault{err}
			}
			return r, nil
		}
		if seen[d.Digest.Hex] {
			continue
		}
		seen[d.Digest.Hex] = true
		g.Go(func() error { return s.downloadLayer(gctx, c, d, path) })
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return layers, nil
}

func (s *Store) downloadLayer(ctx context.Context, c *client, d v1.Descriptor, path string) error {
	f, err := create(s.fsys, path)
	if err != nil {
		return localFault{err}
	}
	err = c.blob(ctx, d, f, func() error {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return localFault{err}
		}
		if err := f.Truncate(0); err != nil {
			return localFault{err}
		}
		return nil
	})
	// Not synced: it goes with the temporary directory.
	if cerr := f.Close(); err == nil && cerr != nil {
		err = localFault{cerr}
	}
	return err
}

func (s *Store) writeDisk(ctx context.Context, t *tree, layers []opener, path string) (int64, error) {
	f, err := create(s.fsys, path)
	if err != nil {
		return 0, err
	}
	used, err := writeExt4(ctx, t, layers, f, s.opts.SlotBytes)
	if err == nil {
		err = f.Sync()
	}
	return used, errors.Join(err, f.Close())
}

// publish moves a complete image to its place. One that another process has put
// there meanwhile is as good.
func (s *Store) publish(out, digest string) error {
	if err := s.fsys.SyncDir(out); err != nil {
		return err
	}
	hex, err := digestHex(digest)
	if err != nil {
		return err
	}
	return s.exclusive(func() error {
		path := filepath.Join(s.dir, hex)
		switch _, err := s.fsys.Lstat(path); {
		case err == nil:
			if _, err := s.read(digest); err == nil {
				return s.fsys.SyncDir(s.dir) // whoever renamed it may have died before that
			}
			if err := s.discard(path); err != nil {
				return err
			}
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if err := s.fsys.Rename(out, path); err != nil {
			return err
		}
		return s.fsys.SyncDir(s.dir)
	})
}
