// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package images makes container images and serves them on loopback, for tests
// and the demo: a busybox, a Debian with python3, and small synthetic ones that are
// wrong in a particular way. No public registry is involved.
package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Entry is one entry of a layer.
type Entry struct {
	tar.Header
	Content []byte
}

// epoch is the time of all synthetic files, so that digests do not change.
func epoch() time.Time { return time.Unix(1700000000, 0) }

// Dir is a directory.
func Dir(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: epoch()}}
}

// File is a regular file.
func File(name string, mode int64, content string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: epoch()}, Content: []byte(content)}
}

// Symlink is a symbolic link to target.
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: epoch()}}
}

// Hardlink is another name for the file target.
func Hardlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, ModTime: epoch()}}
}

// Whiteout hides what lower layers have under name.
func Whiteout(dir, base string) Entry { return File(dir+".wh."+base, 0, "") }

// Opaque hides everything that lower layers have in dir, which ends in a slash
// or is empty.
func Opaque(dir string) Entry { return File(dir+".wh..wh..opq", 0, "") }

// Tar is the archive of the entries.
func Tar(entries ...Entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("archive %q: %w", e.Name, err)
		}
		if _, err := w.Write(e.Content); err != nil {
			return nil, fmt.Errorf("archive %q: %w", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Layer is a gzip layer of the entries.
func Layer(entries ...Entry) (v1.Layer, error) {
	b, err := Tar(entries...)
	if err != nil {
		return nil, err
	}
	return RawLayer(b)
}

// RawLayer is a gzip layer of an archive, or of what claims to be one.
func RawLayer(archive []byte) (v1.Layer, error) {
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive)), nil
	}, tarball.WithMediaType(types.OCILayer))
}

// Image is an image for linux and arch.
func Image(arch string, cfg v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", arch, cfg
	file.Created = v1.Time{Time: epoch()}
	return mutate.ConfigFile(img, file)
}

// Index is a multi-architecture index of the images, by "os/arch".
func Index(byPlatform map[string]v1.Image) (v1.ImageIndex, error) {
	var adds []mutate.IndexAddendum
	for p, img := range byPlatform {
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			return nil, fmt.Errorf("assemble index: %w", err)
		}
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return mutate.IndexMediaType(mutate.AppendManifests(empty.Index, adds...), types.OCIImageIndex), nil
}

// Small is a tiny, correct image: one file, and a command that does not exist in
// it. It is for tests that never run it.
func Small(arch string) (v1.Image, error) {
	l, err := Layer(Dir("etc", 0o755), File("etc/hello", 0o644, "hello from "+arch+"\n"))
	if err != nil {
		return nil, err
	}
	return Image(arch, v1.Config{Cmd: []string{"/no/such/command"}, Env: []string{"PATH=/bin"}}, l)
}

// MissingEntrypoint is like base, but asks for a command it does not have.
func MissingEntrypoint(base v1.Image) (v1.Image, error) {
	return mutate.Config(base, v1.Config{Entrypoint: []string{"/no/such/entrypoint"}, Env: []string{"PATH=/bin"}})
}

// HugeManifest is an image whose manifest has about the given size.
func HugeManifest(arch string, bytes int) (v1.Image, error) {
	base, err := Small(arch)
	if err != nil {
		return nil, err
	}
	img, ok := mutate.Annotations(base, map[string]string{"junk": strings.Repeat("x", bytes)}).(v1.Image)
	if !ok {
		return nil, fmt.Errorf("annotate image: unexpected type")
	}
	return img, nil
}
