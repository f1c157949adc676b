// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Types of an installation of macOS in a registry: an OCI artifact, whose manifest says what
// it is by its artifactType, or in registries that drop that, by its configuration's type.
// Layers of the disk are its parts in order. Disk and auxiliary storage may be compressed:
// "+gzip" or "+zstd" behind the type says so.
const (
	TypeMacOS             = "application/vnd.firkin.macos.v1"
	TypeMacOSConfig       = "application/vnd.firkin.macos.config.v1+json"
	TypeMacOSDisk         = "application/vnd.firkin.macos.disk.v1"
	TypeMacOSAuxiliary    = "application/vnd.firkin.macos.auxiliary-storage.v1"
	TypeMacOSHardware     = "application/vnd.firkin.macos.hardware-model.v1"
	TypeMacOSIdentifier   = "application/vnd.firkin.macos.machine-identifier.v1"
	suffixGzip            = "+gzip"
	suffixZstd            = "+zstd"
	macOSArtifactVersion  = 1
	macOSDiskName         = "disk.img"
	macOSAuxiliaryName    = "auxiliary.img"
	sectorBytes           = 512
	maxMacOSDiskBytes     = 2 << 40
	maxMacOSChunks        = 4096
	maxMacOSAuxiliary     = 1 << 30  // what Apple's framework makes has 33 MiB
	maxMacOSOpaqueBytes   = 64 << 10 // hardware model and identifier have a few hundred bytes
	maxMacOSConfigBytes   = 64 << 10
	copyBytes             = 256 << 10
	roomEveryBytes        = 256 << 20
	maxAuxiliaryOnTheWire = maxMacOSAuxiliary + 1<<20 // what does not compress grows a little
)

// MacOS is an installation of macOS on disk. Its files never change.
type MacOS struct {
	// AuxiliaryStorage is the path of what the boot loader keeps beside the disk.
	AuxiliaryStorage string
	// HardwareModel and MachineIdentifier are the framework's opaque data.
	HardwareModel, MachineIdentifier []byte
}

// macOSConfig is the artifact's configuration.
type macOSConfig struct {
	Version      int    `json:"version"`
	Architecture string `json:"architecture"`
	// DiskBytes and AuxiliaryBytes are the lengths of the files, unpacked.
	DiskBytes      int64 `json:"diskBytes"`
	AuxiliaryBytes int64 `json:"auxiliaryBytes"`
}

// decodeMacOSConfig reads a configuration and checks every field.
func decodeMacOSConfig(b []byte) (macOSConfig, error) {
	var c macOSConfig
	if err := decodeStrict(b, maxMacOSConfigBytes, &c); err != nil {
		return macOSConfig{}, corrupt("configuration of a macOS installation: %w", err)
	}
	switch {
	case c.Version != macOSArtifactVersion:
		return macOSConfig{}, corrupt("macOS installation of version %d, want %d", c.Version, macOSArtifactVersion)
	case c.Architecture == "" || len(c.Architecture) > 32:
		return macOSConfig{}, corrupt("macOS installation for architecture %.32q", c.Architecture)
	case c.DiskBytes <= 0 || c.DiskBytes > maxMacOSDiskBytes || c.DiskBytes%sectorBytes != 0:
		return macOSConfig{}, corrupt("macOS disk of %d bytes, want a multiple of %d up to %d", c.DiskBytes, sectorBytes, int64(maxMacOSDiskBytes))
	case c.AuxiliaryBytes <= 0 || c.AuxiliaryBytes > maxMacOSAuxiliary:
		return macOSConfig{}, corrupt("macOS auxiliary storage of %d bytes, want 1 to %d", c.AuxiliaryBytes, maxMacOSAuxiliary)
	}
	return c, nil
}

// isMacOS tells what a manifest is of. Pure.
func isMacOS(m *v1.Manifest) bool {
	return m.ArtifactType == TypeMacOS || m.Config.MediaType == TypeMacOSConfig
}

// checkKind refuses what is of the other kind than was asked for. Pure.
func checkKind(isMacOS, wantMacOS bool) error {
	switch {
	case wantMacOS && !isMacOS:
		return fmt.Errorf("%w: it is a container image, not a macOS installation; vk-firkin image push-macos makes one", ErrWrongKind)
	case isMacOS && !wantMacOS:
		return fmt.Errorf("%w: it is a macOS installation, not a container image; a SnapshotTemplate with guestOS: macos uses it", ErrWrongKind)
	}
	return nil
}

// macOSParts are the layers of an installation.
type macOSParts struct {
	disk                            []v1.Descriptor
	auxiliary, hardware, identifier v1.Descriptor
}

// macOSPartsOf checks the layers of a manifest. Pure.
func macOSPartsOf(m *v1.Manifest) (macOSParts, error) {
	var p macOSParts
	if m.Config.MediaType != TypeMacOSConfig {
		return p, corrupt("configuration of a macOS installation has the type %.128q", m.Config.MediaType)
	}
	if !validDigest(m.Config.Digest.String()) || m.Config.Size <= 0 || m.Config.Size > maxMacOSConfigBytes {
		return p, corrupt("configuration %s of %d bytes, want 1 to %d", m.Config.Digest, m.Config.Size, maxMacOSConfigBytes)
	}
	if len(m.Layers) > maxMacOSChunks+3 {
		return p, corrupt("%d layers, want at most %d", len(m.Layers), maxMacOSChunks+3)
	}
	var total int64
	for _, l := range m.Layers {
		kind, _ := plainType(l.MediaType)
		most := int64(maxMacOSDiskBytes) - total
		var one *v1.Descriptor
		switch kind {
		case TypeMacOSDisk:
			p.disk = append(p.disk, l)
		case TypeMacOSAuxiliary:
			one, most = &p.auxiliary, min(most, maxAuxiliaryOnTheWire)
		case TypeMacOSHardware:
			one, most = &p.hardware, min(most, maxMacOSOpaqueBytes)
		case TypeMacOSIdentifier:
			one, most = &p.identifier, min(most, maxMacOSOpaqueBytes)
		default:
			return p, corrupt("layer %s of a macOS installation has the type %.128q", l.Digest, l.MediaType)
		}
		if !validDigest(l.Digest.String()) || l.Size <= 0 || l.Size > most {
			return p, corrupt("layer %s of %d bytes, want 1 to %d", l.Digest, l.Size, most)
		}
		total += l.Size
		if one == nil {
			continue
		}
		if one.Size > 0 {
			return p, corrupt("two layers of the type %.128q", l.MediaType)
		}
		*one = l
	}
	if len(p.disk) == 0 || p.auxiliary.Size == 0 || p.hardware.Size == 0 || p.identifier.Size == 0 {
		return p, corrupt("a macOS installation has a disk, auxiliary storage, a hardware model and a machine identifier, and not all of them are there")
	}
	return p, nil
}

// plainType splits how a layer is compressed off its type. Only disk and auxiliary storage
// may be. Pure.
func plainType(t types.MediaType) (kind, suffix string) {
	for _, suffix := range []string{suffixGzip, suffixZstd} {
		if kind, ok := strings.CutSuffix(string(t), suffix); ok && (kind == TypeMacOSDisk || kind == TypeMacOSAuxiliary) {
			return kind, suffix
		}
	}
	return string(t), ""
}

// unpack reads a layer as its type says.
func unpack(r io.Reader, t types.MediaType) (*plainReader, error) {
	switch _, suffix := plainType(t); suffix {
	case suffixGzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, corrupt("decompress: %w", err)
		}
		return &plainReader{z, func() { _ = z.Close() }}, nil
	case suffixZstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, corrupt("decompress: %w", err)
		}
		return &plainReader{z, z.Close}, nil
	}
	return &plainReader{r, func() {}}, nil
}

// buildMacOS downloads an installation. Its caller has a slot and has looked for room for
// the download.
func (s *Store) buildMacOS(ctx context.Context, c *client, m *manifest) error {
	parts, err := macOSPartsOf(&m.Manifest)
	if err != nil {
		return err
	}
	blob := func(d v1.Descriptor) ([]byte, error) {
		var b bytes.Buffer
		err := c.blob(ctx, d, &b, func() error { b.Reset(); return nil })
		return b.Bytes(), err
	}
	raw, err := blob(m.Config)
	if err != nil {
		return err
	}
	cfg, err := decodeMacOSConfig(raw)
	if err != nil {
		return err
	}
	if cfg.Architecture != s.opts.Arch {
		return fmt.Errorf("%w: it is for %s, this node runs %s", ErrPlatform, cfg.Architecture, s.opts.Arch)
	}
	r := record{
		Digest: m.digest, ConfigDigest: m.Config.Digest.String(), Architecture: cfg.Architecture,
		Created: s.opts.Now().UTC(), MacOS: &macOSRecord{DiskBytes: cfg.DiskBytes, AuxiliaryBytes: cfg.AuxiliaryBytes},
	}
	if r.MacOS.HardwareModel, err = blob(parts.hardware); err != nil {
		return err
	}
	if r.MacOS.MachineIdentifier, err = blob(parts.identifier); err != nil {
		return err
	}

	tmp, done, err := s.tempDir()
	if err != nil {
		return fmt.Errorf("make temporary directory: %w", err)
	}
	defer done()
	out := filepath.Join(tmp, "image")
	if err := s.fsys.Mkdir(out); err != nil {
		return err
	}
	for _, f := range []struct {
		name   string
		bytes  int64
		layers []v1.Descriptor
	}{{macOSAuxiliaryName, cfg.AuxiliaryBytes, []v1.Descriptor{parts.auxiliary}}, {macOSDiskName, cfg.DiskBytes, parts.disk}} {
		used, err := s.assemble(ctx, c, f.layers, tmp, filepath.Join(out, f.name), f.bytes)
		if err != nil {
			return fmt.Errorf("make %s: %w", f.name, err)
		}
		r.SizeBytes += used
	}
	b, err := recordFormat.Encode(r)
	if err != nil {
		return corrupt("configuration: %w", err)
	}
	if err := durable.WriteNew(s.fsys, filepath.Join(out, recordName), b, durable.Synced); err != nil {
		return fmt.Errorf("write %s: %w", recordName, err)
	}
	if err := s.publish(out, m.digest); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// assemble makes a file of layers, one after the other: each is downloaded to dir, checked
// against its digest, unpacked, and deleted. It returns what has content.
func (s *Store) assemble(ctx context.Context, c *client, layers []v1.Descriptor, dir, path string, length int64) (used int64, err error) {
	f, err := create(s.fsys, path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := &assembly{sparseWriter: &sparseWriter{ctx: ctx, f: f}, left: length, room: func() error { return s.room(0) }}
	for i, d := range layers {
		if err := s.room(d.Size); err != nil {
			return 0, err
		}
		packed := filepath.Join(dir, fmt.Sprintf("layer-%d", i))
		if err := s.downloadLayer(ctx, c, d, packed); err != nil {
			return 0, err
		}
		if err := s.append(ctx, w, packed, d.MediaType); err != nil {
			return 0, fmt.Errorf("unpack layer %s: %w", d.Digest, err)
		}
		if err := s.fsys.RemoveAll(packed); err != nil {
			return 0, err
		}
	}
	if w.left > 0 {
		return 0, corrupt("the layers unpack to %d bytes less than the configuration says", w.left)
	}
	if err := f.Truncate(length); err != nil { // a hole at the end
		return 0, err
	}
	return w.used, f.Sync()
}

func (s *Store) append(ctx context.Context, w *assembly, packed string, t types.MediaType) error {
	in, err := s.fsys.OpenFile(packed, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	r, err := unpack(&contextReader{ctx, in}, t)
	if err != nil {
		return err
	}
	defer r.Close()
	return w.readFrom(r)
}

// assembly is a file that is made of several streams.
type assembly struct {
	*sparseWriter
	left int64 // may yet be written
	told int64 // of used, when room was last asked for
	room func() error
}

// readFrom writes all of r. More than is left is ErrCorrupt, as is what r cannot unpack.
func (w *assembly) readFrom(r io.Reader) error {
	b := make([]byte, copyBytes)
	for {
		n, err := r.Read(b)
		if int64(n) > w.left {
			return corrupt("it unpacks to more bytes than the configuration says")
		}
		w.left -= int64(n)
		if _, werr := w.Write(b[:n]); werr != nil {
			return werr
		}
		if w.used-w.told >= roomEveryBytes {
			w.told = w.used
			if rerr := w.room(); rerr != nil {
				return rerr
			}
		}
		var local localFault
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		case w.ctx.Err() != nil:
			return context.Cause(w.ctx)
		case errors.As(err, &local):
			return err
		default:
			return corrupt("decompress: %w", err)
		}
	}
}

// macOSRecord is what image.json says of an installation.
type macOSRecord struct {
	DiskBytes         int64  `json:"diskBytes"`
	AuxiliaryBytes    int64  `json:"auxiliaryBytes"`
	HardwareModel     []byte `json:"hardwareModel"`
	MachineIdentifier []byte `json:"machineIdentifier"`
}

func (r *macOSRecord) check() error {
	var errs []error
	if r.DiskBytes <= 0 || r.DiskBytes > maxMacOSDiskBytes || r.DiskBytes%sectorBytes != 0 {
		errs = append(errs, fmt.Errorf("disk of %d bytes", r.DiskBytes))
	}
	if r.AuxiliaryBytes <= 0 || r.AuxiliaryBytes > maxMacOSAuxiliary {
		errs = append(errs, fmt.Errorf("auxiliary storage of %d bytes", r.AuxiliaryBytes))
	}
	for _, b := range [][]byte{r.HardwareModel, r.MachineIdentifier} {
		if len(b) == 0 || len(b) > maxMacOSOpaqueBytes {
			errs = append(errs, fmt.Errorf("hardware model or machine identifier of %d bytes", len(b)))
		}
	}
	return errors.Join(errs...)
}
