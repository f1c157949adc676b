// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// MacOSFiles are the four files of an installation of macOS, as Apple's framework made
// them: the raw disk, the auxiliary storage, and the data representations of hardware model
// and machine identifier.
type MacOSFiles struct {
	Disk, AuxiliaryStorage, HardwareModel, MachineIdentifier string
}

// PushOptions of PushMacOS.
type PushOptions struct {
	// Auth finds credentials; nil means anonymous access.
	Auth authn.Keychain
	// InsecureRegistries are spoken to in plain HTTP, as "host" or "host:port".
	InsecureRegistries []string
	// ChunkBytes of the disk are one layer. Default 1 GiB: a registry that limits layers
	// takes it, and a download that breaks loses no more.
	ChunkBytes int64
	// TempDir has room for one compressed chunk. Default: the system's.
	TempDir string
	// Progress is called before each layer; may be nil.
	Progress func(layer, of int)
}

const (
	defaultChunkBytes = 1 << 30
	macOSArch         = "arm64" // Apple's framework runs macOS on Apple silicon only
)

// PushMacOS makes an artifact of an installation and pushes it. It returns the reference
// with its digest. Compression takes most of the time; ctx bounds all of it.
func PushMacOS(ctx context.Context, reference string, files MacOSFiles, opts PushOptions) (string, error) {
	if opts.ChunkBytes == 0 {
		opts.ChunkBytes = defaultChunkBytes
	}
	if opts.ChunkBytes < sectorBytes {
		return "", fmt.Errorf("%w: chunks of %d bytes", ErrInvalidOptions, opts.ChunkBytes)
	}
	insecure := map[string]bool{}
	for _, h := range opts.InsecureRegistries {
		insecure[h] = true
	}
	ref, err := parseReference(reference, insecure)
	if err != nil {
		return "", fmt.Errorf("push macOS installation: %w", err)
	}
	auth := opts.Auth
	if auth == nil {
		auth = authn.NewMultiKeychain() // finds none
	}
	p := &macOSPush{repo: ref.Context(), opts: opts, remote: []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(auth), remote.WithUserAgent("vk-firkin")}}
	digest, err := p.push(ctx, ref, files)
	if err != nil {
		return "", fmt.Errorf("push macOS installation %s: %w", displayName(ref.Name()), remoteError(ctx, err))
	}
	return displayName(ref.Context().Name()) + "@" + digest, nil
}

type macOSPush struct {
	repo   name.Repository
	opts   PushOptions
	remote []remote.Option
	done   int
	of     int
}

func (p *macOSPush) push(ctx context.Context, ref name.Reference, files MacOSFiles) (string, error) {
	cfg := macOSConfig{Version: macOSArtifactVersion, Architecture: macOSArch}
	for _, f := range []struct {
		path string
		size *int64
	}{{files.Disk, &cfg.DiskBytes}, {files.AuxiliaryStorage, &cfg.AuxiliaryBytes}} {
		st, err := os.Stat(f.path)
		if err != nil {
			return "", localFault{err}
		}
		*f.size = st.Size()
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return "", err
	}
	// What a node would refuse is not pushed.
	if _, err := decodeMacOSConfig(raw); err != nil {
		return "", err
	}
	p.of = 4 + int((cfg.DiskBytes+p.opts.ChunkBytes-1)/p.opts.ChunkBytes)
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: TypeMacOS}
	if m.Config, err = p.bytes(raw, TypeMacOSConfig); err != nil {
		return "", err
	}
	for _, small := range []struct{ path, kind string }{{files.HardwareModel, TypeMacOSHardware}, {files.MachineIdentifier, TypeMacOSIdentifier}} {
		b, err := readSmall(small.path, maxMacOSOpaqueBytes)
		if err != nil {
			return "", localFault{err}
		}
		d, err := p.bytes(b, types.MediaType(small.kind))
		if err != nil {
			return "", err
		}
		m.Layers = append(m.Layers, d)
	}
	auxiliary, err := p.file(ctx, files.AuxiliaryStorage, cfg.AuxiliaryBytes, max(cfg.AuxiliaryBytes, 1), TypeMacOSAuxiliary)
	if err != nil {
		return "", err
	}
	disk, err := p.file(ctx, files.Disk, cfg.DiskBytes, p.opts.ChunkBytes, TypeMacOSDisk)
	if err != nil {
		return "", err
	}
	m.Layers = append(append(m.Layers, auxiliary...), disk...)
	if _, err := macOSPartsOf(&m); err != nil {
		return "", err
	}
	out, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	if err := remote.Put(ref, rawManifest(out), p.remote...); err != nil {
		return "", err
	}
	sum := sha256.Sum256(out)
	return digestPrefix + hex.EncodeToString(sum[:]), nil
}

// file pushes a file in chunks, each compressed.
func (p *macOSPush) file(ctx context.Context, path string, size, chunk int64, kind string) (layers []v1.Descriptor, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, localFault{err}
	}
	defer func() { _ = f.Close() }()
	for at := int64(0); at < size; at += chunk {
		d, err := p.chunk(ctx, io.NewSectionReader(f, at, min(chunk, size-at)), types.MediaType(kind+suffixZstd))
		if err != nil {
			return nil, err
		}
		layers = append(layers, d)
	}
	return layers, nil
}

// chunk compresses into a temporary file, since a registry is told the digest first.
func (p *macOSPush) chunk(ctx context.Context, r io.Reader, kind types.MediaType) (d v1.Descriptor, err error) {
	tmp, err := os.MkdirTemp(p.opts.TempDir, "vk-firkin-push-")
	if err != nil {
		return d, localFault{err}
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	path := filepath.Join(tmp, "chunk")
	f, err := os.Create(path)
	if err != nil {
		return d, localFault{err}
	}
	sum := sha256.New()
	z, err := zstd.NewWriter(io.MultiWriter(f, sum))
	if err == nil {
		_, err = io.Copy(z, &contextReader{ctx, r})
		err = errors.Join(err, z.Close())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return d, localFault{err}
	}
	st, err := os.Stat(path)
	if err != nil {
		return d, localFault{err}
	}
	d = v1.Descriptor{MediaType: kind, Size: st.Size(), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}}
	return d, p.write(fileLayer{d, path})
}

func (p *macOSPush) bytes(b []byte, kind types.MediaType) (v1.Descriptor, error) {
	sum := sha256.Sum256(b)
	d := v1.Descriptor{MediaType: kind, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
	return d, p.write(static.NewLayer(b, kind))
}

func (p *macOSPush) write(l v1.Layer) error {
	p.done++
	if p.opts.Progress != nil {
		p.opts.Progress(p.done, p.of)
	}
	return remote.WriteLayer(p.repo, l, p.remote...)
}

// fileLayer is a layer in a file, as it is.
type fileLayer struct {
	descriptor v1.Descriptor
	path       string
}

// Digest, and the methods below, are part of v1.Layer.
func (l fileLayer) Digest() (v1.Hash, error)             { return l.descriptor.Digest, nil }
func (l fileLayer) DiffID() (v1.Hash, error)             { return l.descriptor.Digest, nil }
func (l fileLayer) Size() (int64, error)                 { return l.descriptor.Size, nil }
func (l fileLayer) MediaType() (types.MediaType, error)  { return l.descriptor.MediaType, nil }
func (l fileLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.path) }
func (l fileLayer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.path) }

// rawManifest is a manifest that can be put.
type rawManifest []byte

// RawManifest is part of remote.Taggable.
func (m rawManifest) RawManifest() ([]byte, error) { return m, nil }

// MediaType tells the registry what it is.
func (rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// readSmall reads a file of the user's, by whatever links it is reached.
func readSmall(path string, limit int64) (data []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if data, err = io.ReadAll(io.LimitReader(f, limit+1)); err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return data, err
}
