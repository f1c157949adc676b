// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// user is whom the chart runs the controller as: nobody that an image or a node has.
	user = "65532:65532"
	// program is where the image has vk-firkin.
	program = "vk-firkin"
	// authorities is where Go looks for them first, on every distribution's Linux.
	authorities = "etc/ssl/certs/ca-certificates.crt"
)

// epoch is the time of all files and of the image: what it was built from says more than when.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

// machines are the architectures that there are guest kits and nodes for, as ELF names them.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// build makes the index of one image for each program, in the order of their architectures.
func build(o options) (v1.ImageIndex, error) {
	var bundle []byte
	if o.caBundle != "" {
		var err error
		if bundle, err = os.ReadFile(o.caBundle); err != nil {
			return nil, fmt.Errorf("read authorities: %w", err)
		}
	}
	labels := map[string]string{
		"org.opencontainers.image.title":       "vk-firkin controller",
		"org.opencontainers.image.description": "spreads warm pools over the nodes of vk-firkin and approves their certificates",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     o.version,
	}
	var adds []mutate.IndexAddendum
	for _, arch := range slices.Sorted(maps.Keys(o.binaries)) {
		img, err := image(arch, o.binaries[arch], bundle, labels)
		if err != nil {
			return nil, fmt.Errorf("image for %s: %w", arch, err)
		}
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	index := mutate.IndexMediaType(mutate.AppendManifests(empty.Index, adds...), types.OCIImageIndex)
	annotated, ok := mutate.Annotations(index, labels).(v1.ImageIndex)
	if !ok {
		return nil, errors.New("an annotated index is no index")
	}
	return annotated, nil
}

// image is a program and nothing else.
func image(arch, path string, bundle []byte, labels map[string]string) (v1.Image, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	if err := runsAlone(arch, content); err != nil {
		return nil, fmt.Errorf("%s %w; build it with GOOS=linux GOARCH=%s CGO_ENABLED=0", path, err, arch)
	}
	archive, err := layerArchive(content, bundle)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: epoch()}, CreatedBy: "hack/controllerimage"}}); err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", arch, v1.Time{Time: epoch()}
	file.Config = v1.Config{Entrypoint: []string{"/" + program}, Cmd: []string{"controller"}, User: user, WorkingDir: "/", Labels: labels}
	return mutate.ConfigFile(img, file)
}

// runsAlone tells whether a program runs on the architecture's Linux with no other file beside it.
func runsAlone(arch string, content []byte) error {
	want, ok := machines[arch]
	if !ok {
		return fmt.Errorf("is for architecture %q, want amd64 or arm64", arch)
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("is no program for Linux: %w", err)
	}
	if f.Machine != want {
		return fmt.Errorf("is for %s", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("needs a dynamic linker, which the image does not have")
		}
	}
	return nil
}

// layerArchive is the layer, whose bytes depend on its arguments alone.
func layerArchive(binary, bundle []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, mode int64, content []byte) error {
		h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: epoch(), Format: tar.FormatUSTAR}
		if content == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	err := add(program, 0o755, binary)
	if bundle != nil {
		for _, dir := range []string{"etc/", "etc/ssl/", "etc/ssl/certs/"} {
			err = errors.Join(err, add(dir, 0o755, nil))
		}
		err = errors.Join(err, add(authorities, 0o644, bundle))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("archive the layer: %w", err)
	}
	return b.Bytes(), nil
}

// writeLayout writes the index as an OCI layout. What loads it finds the name in annotations: containerd in one of its own, others in OCI's.
func writeLayout(dir, ref string, index v1.ImageIndex) error {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it is there already (%w): remove it first", errors.Join(err, fs.ErrExist))
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag.TagStr(),
		"io.containerd.image.name":          containerdName(tag),
	}))
}

// containerdName is a name in full, as containerd and the kubelet have it: they call the registry
// docker.io that the library calls by the host that serves it.
func containerdName(tag name.Tag) string {
	if rest, is := strings.CutPrefix(tag.Name(), name.DefaultRegistry+"/"); is {
		return "docker.io/" + rest
	}
	return tag.Name()
}

// writeArchive writes the layout as one file, whose bytes depend on the image and its name alone.
func writeArchive(path, ref string, index v1.ImageIndex) (err error) {
	dir, err := os.MkdirTemp("", "controllerimage-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root := filepath.Join(dir, "layout")
	if err := writeLayout(root, ref, index); err != nil {
		return err
	}
	tmp := path + ".new"
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	err = errors.Join(archiveTree(f, root), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}

// archiveTree archives a directory in lexical order, without times and owners.
func archiveTree(out io.Writer, root string) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		h := tar.Header{Typeflag: tar.TypeDir, Name: filepath.ToSlash(rel) + "/", Mode: 0o755, ModTime: epoch(), Format: tar.FormatPAX}
		if d.IsDir() {
			return w.WriteHeader(&h)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		h.Typeflag, h.Name, h.Mode, h.Size = tar.TypeReg, filepath.ToSlash(rel), 0o644, int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	return errors.Join(err, w.Close())
}

// push writes the index to the registry that its name begins with.
func push(ctx context.Context, ref string, insecure bool, index v1.ImageIndex) error {
	var opts []name.Option
	if insecure {
		opts = append(opts, name.Insecure)
	}
	tag, err := name.NewTag(ref, opts...)
	if err != nil {
		return err
	}
	return remote.WriteIndex(tag, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
}
