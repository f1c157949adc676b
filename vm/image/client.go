// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Bounds of the small documents of an image.
const (
	// maxManifestBytes: what registries accept at most (OCI distribution asks for 4 MiB).
	maxManifestBytes = 4 << 20
	// maxConfigBytes is ample: argument lists and environments are bounded by the
	// kernel to a few MiB, configurations seen in the wild are tens of KiB.
	maxConfigBytes = 1 << 20
	// maxIndexDepth: an index in an index is allowed and unused, deeper is an attack.
	maxIndexDepth = 2
)

// client talks to one repository with one credential.
type client struct {
	puller *remote.Puller
	repo   name.Repository
}

func newClient(g *guard, repo name.Repository, auth authn.AuthConfig) (*client, error) {
	p, err := remote.NewPuller(
		remote.WithTransport(g),
		remote.WithAuth(authn.FromConfig(auth)),
		remote.WithUserAgent("vk-firkin"),
		// The guard tries again by itself, and stops when the context ends.
		remote.WithRetryStatusCodes(),
		remote.WithRetryPredicate(func(error) bool { return false }),
	)
	if err != nil {
		return nil, err
	}
	return &client{puller: p, repo: repo}, nil
}

// target asks what a reference stands for now: the digest of a manifest or an
// index. Cheap, and not counted by registries that meter pulls.
func (c *client) target(ctx context.Context, ref name.Reference) (string, error) {
	desc, err := c.puller.Head(ctx, ref)
	if err != nil {
		return "", remoteError(ctx, err)
	}
	return desc.Digest.String(), nil
}

// manifest is an image's manifest for one platform.
type manifest struct {
	digest string // of the manifest itself
	target string // what the reference stood for: the digest of the index, or of the manifest
	v1.Manifest
}

// resolve gets the manifest that ref stands for on linux and arch, or that of a macOS
// installation.
func (c *client) resolve(ctx context.Context, ref name.Reference, arch string, limits Limits, macOS bool) (*manifest, error) {
	m := &manifest{}
	for depth := 0; ; depth++ {
		desc, err := c.puller.Get(ctx, ref)
		if err != nil {
			return nil, remoteError(ctx, fmt.Errorf("get manifest of %s: %w", displayName(ref.Name()), err))
		}
		if m.target == "" {
			m.target = desc.Digest.String()
		}
		switch desc.MediaType {
		case types.OCIImageIndex, types.DockerManifestList:
			if err := checkKind(false, macOS); err != nil {
				return nil, err // an installation is for one platform only
			}
			if depth == maxIndexDepth {
				return nil, corrupt("indexes are nested more than %d deep", maxIndexDepth)
			}
			index, err := v1.ParseIndexManifest(bytes.NewReader(desc.Manifest))
			if err != nil {
				return nil, corrupt("decode index: %w", err)
			}
			child, err := choosePlatform(index.Manifests, arch)
			if err != nil {
				return nil, err
			}
			if !validDigest(child.Digest.String()) {
				return nil, corrupt("index names the digest %q", child.Digest)
			}
			ref = c.repo.Digest(child.Digest.String())
		case types.OCIManifestSchema1, types.DockerManifestSchema2:
			parsed, err := v1.ParseManifest(bytes.NewReader(desc.Manifest))
			if err != nil {
				return nil, corrupt("decode manifest: %w", err)
			}
			m.digest, m.Manifest = desc.Digest.String(), *parsed
			if err := checkKind(isMacOS(parsed), macOS); err != nil {
				return nil, err
			}
			if macOS {
				if !validDigest(m.digest) {
					return nil, corrupt("manifest has the digest %q", m.digest)
				}
				_, err := macOSPartsOf(parsed)
				return m, err
			}
			return m, checkManifest(m, limits)
		default:
			return nil, corrupt("manifest has the type %q, want an OCI or Docker v2 schema 2 image", desc.MediaType)
		}
	}
}

func checkManifest(m *manifest, limits Limits) error {
	if !validDigest(m.digest) {
		return corrupt("manifest has the digest %q", m.digest)
	}
	if !validDigest(m.Config.Digest.String()) || m.Config.Size < 0 || m.Config.Size > maxConfigBytes {
		return corrupt("configuration %s of %d bytes, want at most %d", m.Config.Digest, m.Config.Size, maxConfigBytes)
	}
	if len(m.Layers) > limits.Layers {
		return corrupt("%d layers, want at most %d", len(m.Layers), limits.Layers)
	}
	var total int64
	for _, l := range m.Layers {
		if !validDigest(l.Digest.String()) || l.Size < 0 || l.Size > limits.Bytes-total {
			return corrupt("layer %s of %d bytes: more than %d bytes in all", l.Digest, l.Size, limits.Bytes)
		}
		total += l.Size
		switch l.MediaType {
		case types.DockerLayer, types.DockerUncompressedLayer, types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd:
		default:
			return corrupt("layer %s has the type %q, want a tar, plain or compressed by gzip or zstd", l.Digest, l.MediaType)
		}
	}
	return nil
}

// compressedBytes is what a pull transfers.
func (m *manifest) compressedBytes() int64 {
	total := m.Config.Size
	for _, l := range m.Layers {
		total += l.Size
	}
	return total
}

// blob copies a blob to w and checks its size and digest. A connection that
// breaks on the way is tried again, rewind empties w for that.
func (c *client) blob(ctx context.Context, d v1.Descriptor, w io.Writer, rewind func() error) error {
	for attempt := 1; ; attempt++ {
		err := c.blobOnce(ctx, d, w)
		if err == nil {
			return nil
		}
		if attempt == retryAttempts || !transientError(err) {
			return fmt.Errorf("get blob %s: %w", d.Digest, remoteError(ctx, err))
		}
		if err := rewind(); err != nil {
			return err
		}
	}
}

func (c *client) blobOnce(ctx context.Context, d v1.Descriptor, w io.Writer) error {
	// An error page may be longer than a tiny blob.
	watch := &bodyWatch{limit: max(d.Size, 64<<10)}
	layer, err := c.puller.Layer(watch.with(ctx), c.repo.Digest(d.Digest.String()))
	if err != nil {
		return err
	}
	rc, err := layer.Compressed()
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }()
	v := &verifier{hash: sha256.New(), want: d}
	sink := &sink{w: w}
	_, err = io.Copy(io.MultiWriter(v, sink), rc)
	switch {
	case sink.err != nil:
		return localFault{sink.err}
	case v.err != nil:
		return v.err
	case err != nil && !watch.ended:
		return err
	}
	// The body came to its end. If err is set, the library under us found that the
	// digest is wrong, and so do we.
	return v.check()
}

// sink remembers that it was the writer that failed.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.err = err
	return n, err
}

// localFault marks an error as this host's, not the registry's.
type localFault struct{ error }

func (f localFault) Unwrap() error { return f.error }

// verifier hashes and counts what is written to it.
type verifier struct {
	hash hash.Hash
	want v1.Descriptor
	n    int64
	err  error
}

func (v *verifier) Write(p []byte) (int, error) {
	v.n += int64(len(p))
	if v.n > v.want.Size {
		v.err = corrupt("blob %s is longer than its %d bytes", v.want.Digest, v.want.Size)
		return 0, v.err
	}
	return v.hash.Write(p)
}

func (v *verifier) check() error {
	if v.n != v.want.Size {
		return corrupt("blob %s has %d bytes, want %d", v.want.Digest, v.n, v.want.Size)
	}
	if got := digestPrefix + hex.EncodeToString(v.hash.Sum(nil)); got != v.want.Digest.String() {
		return corrupt("blob %s has the content of %s", v.want.Digest, got)
	}
	return nil
}
