// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/vk-firkin/vk-firkin/test/images"
)

// allocated is how much this process has ever allocated: unlike the size of the heap it does not
// depend on when the garbage collector ran.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// census describes everything below dir: kind, mode, times and content.
func census(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := fmt.Sprint(info.Mode(), info.ModTime().UnixNano())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(b)
		}
		all[path] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// zeros is the compressed form of an archive of one file of n zeros, or of n zeros alone.
func zeros(t *testing.T, file bool, n int64, compress func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	z := compress(&b)
	if file {
		if err := tar.NewWriter(z).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: n}); err != nil {
			t.Fatal(err)
		}
	}
	part := make([]byte, 1<<20)
	for left := n; left > 0; left -= int64(len(part)) {
		if _, err := z.Write(part[:min(left, int64(len(part)))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func byGzip(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }

func byZstd(w io.Writer) io.WriteCloser {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return z
}

// forged is an entry of a kind that archive/tar does not write, such as a PAX header.
func forged(t *testing.T, kind byte, content string) []byte {
	t.Helper()
	b := bytes.Clone(archive(t, images.File("x", 0o644, content)))
	b = b[:len(b)-1024] // the end of the archive
	b[156] = kind
	sum := 8 * int(' ') // the checksum counts as blanks
	for i, c := range b[:512] {
		if i < 148 || i >= 156 {
			sum += int(c)
		}
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// pax is a record of a PAX header, which begins with its own length.
func pax(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for n != len(fmt.Sprint(n))+len(rest) {
		n = len(fmt.Sprint(n)) + len(rest)
	}
	return fmt.Sprint(n) + rest
}

// TestHostileCorpus pulls images that lie, climb and explode, by the way that every image goes,
// from a registry into a store. What is wrong is refused for what it is, what merely looks
// dangerous stays inside the image, nothing outside the store is touched, nothing is left of
// what was refused, and none of it costs memory.
func TestHostileCorpus(t *testing.T) {
	base := t.TempDir()
	canary, dir := filepath.Join(base, "canary"), filepath.Join(base, "store")
	for path, content := range map[string]string{"secret": "s3cr3t", "d/f": "kept", "run.sh": "#!/bin/sh\n"} {
		path = filepath.Join(canary, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	before := census(t, canary)

	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()

	r := testRegistry(t, images.RegistryOptions{})
	opts := testOptions(r)
	opts.Limits = Limits{Entries: 10000, NameBytes: 4 << 20, Bytes: 8 << 20}
	s := openStore(t, dir, opts)

	file, link, hard, folder := images.File, images.Symlink, images.Hardlink, images.Dir
	with := func(e images.Entry, change func(*images.Entry)) images.Entry {
		change(&e)
		return e
	}
	up := strings.Repeat("../", 40)
	many := make([]images.Entry, 10001)
	for i := range many {
		many[i] = file(fmt.Sprint("f", i), 0o644, "")
	}
	var chains, behind, attributes []images.Entry
	for i := range 200 { // 2000 folders in each name
		chains = append(chains, file(fmt.Sprint(i, strings.Repeat("/d", 2000), "/f"), 0o644, ""))
	}
	behind = append(behind, link("l", strings.Repeat("d/", 1900)+"d"))
	for i := range 5000 { // 3,800 bytes each, and seven in the archive
		behind = append(behind, file(fmt.Sprint("l/", i), 0o644, ""))
	}
	for i := range 10 {
		attributes = append(attributes, with(file(fmt.Sprint(i), 0o644, ""), func(e *images.Entry) {
			e.PAXRecords = map[string]string{xattrRecord + "user.a": strings.Repeat("x", 512<<10)}
		}))
	}
	sparse := append(forged(t, tar.TypeXHeader, pax("GNU.sparse.major", "0")+pax("GNU.sparse.minor", "1")+pax("GNU.sparse.numblocks", "1")+
		pax("GNU.sparse.map", fmt.Sprint(1<<42, ",0"))+pax("GNU.sparse.size", fmt.Sprint(1<<42))), archive(t, file("sparse", 0o644, ""))...)
	layers := func(l ...v1.Layer) []v1.Layer { return l }
	one := func(e ...images.Entry) []v1.Layer { return layers(layer(t, e...)) }
	raw := func(b []byte) []v1.Layer { return layers(static.NewLayer(b, types.OCILayer)) }
	good := one(file("a", 0o644, "a"))
	var padding []v1.Layer
	for range 30 { // each of them is allowed
		padding = append(padding, static.NewLayer(zeros(t, false, 20<<20, byGzip), types.OCILayer))
	}

	for _, tt := range []struct {
		name   string
		layers []v1.Layer
		config string // instead of a good one
		change func(*v1.Manifest)
		says   string // why it is refused; empty for an image that is harmless
		cost   uint64 // that it may allocate at most; zero for 64 MiB
	}{
		{name: "a name that climbs", layers: one(file(up+canary[1:]+"/secret", 0o644, "bad")), says: "leads out"},
		{name: "an absolute name", layers: one(file(canary+"/secret", 0o644, "bad"), file("/etc/passwd", 0o644, "bad"))},
		{name: "through an absolute link", layers: one(link("l", canary), file("l/secret", 0o644, "bad"))},
		{name: "through a link that climbs", layers: one(link("l", up+canary[1:]), file("l/secret", 0o644, "bad"))},
		{name: "through links of two layers", layers: layers(layer(t, link("l", canary)), layer(t, file("l/secret", 0o644, "bad")))},
		{name: "onto a link", layers: layers(layer(t, link("l", canary+"/secret")), layer(t, file("l", 0o644, "bad")))},
		{name: "a mode through a link", layers: one(link("d", canary), folder("d", 0o777))},
		{name: "a hard link out", layers: one(hard("h", up+canary[1:]+"/secret"), file("h", 0o644, "bad")), says: "leads out"},
		{name: "an absolute hard link", layers: one(hard("h", canary+"/secret"), file("h", 0o644, "bad")), says: "not a file of the image"},
		{name: "a hard link through a link", layers: one(link("l", canary), hard("h", "l/secret")), says: "not a file of the image"},
		{name: "a whiteout that climbs", layers: one(images.Whiteout(up+canary[1:]+"/", "secret")), says: "leads out"},
		{name: "a whiteout through a link", layers: one(link("l", canary), images.Whiteout("l/", "secret"), images.Opaque("l/"))},
		{name: "a whiteout of the folder above", layers: one(images.Whiteout("d/", "..")), says: "hides nothing"},
		{name: "devices, pipes and setuid", layers: one(device("mem", tar.TypeChar, 1, 1), device("disk", tar.TypeBlock, 8, 0), device("pipe", tar.TypeFifo, 0, 0), file("su", 0o6755, "x"))},
		{name: "a socket of no kind", layers: one(with(file("s", 0o644, ""), func(e *images.Entry) { e.Typeflag = 's' })), says: "type"},
		{name: "duplicates", layers: one(file("a", 0o644, "1"), link("a", canary), file("a", 0o600, "2"), folder("a", 0o755), file("a", 0o644, "3"))},
		{name: "a file where a folder was", layers: layers(layer(t, file("d/f", 0o644, "1")), layer(t, file("d", 0o644, "2")), layer(t, file("d/f", 0o644, "3")))},
		{name: "through a file", layers: one(file("a", 0o644, ""), file("a/b", 0o644, "")), says: "through a file"},
		{name: "links in a circle", layers: one(link("a", "b"), link("b", "a"), file("a/x", 0o644, "")), says: "symbolic links"},
		{name: "a name with a NUL", layers: raw(gz(bytes.ReplaceAll(append(forged(t, tar.TypeXHeader, pax("path", "a#b")), archive(t, file("a", 0o644, ""))...), []byte("a#b"), []byte("a\x00b")))), says: "decode archive"},
		{name: "a long name", layers: one(file(strings.Repeat("n/", 2100)+"n", 0o644, "")), says: "has 4201 bytes"},
		{name: "a long component", layers: one(file(strings.Repeat("n", 256), 0o644, "")), says: "component of 256 bytes"},
		{name: "a long name behind a link", layers: one(link("l", strings.Repeat("d/", 1900)+"d"), file("l/"+strings.Repeat("e/", 200)+"f", 0o644, "")), says: "through symbolic links to one of"},
		{name: "many names behind a link", layers: one(behind...), says: "bytes of names", cost: 512 << 20},
		{name: "folders that are only named", layers: one(chains...), says: "entries and directories"},
		{name: "many entries", layers: one(many...), says: "10000 entries"},
		{name: "a giant PAX header", layers: raw(gz(append(forged(t, tar.TypeXHeader, pax("comment", strings.Repeat("x", 2<<20))), archive(t, file("a", 0o644, ""))...))), says: "decode archive"},
		{name: "attributes in great number", layers: one(attributes...), says: "names and attributes"},
		{name: "a giant attribute", layers: one(attributes[0]), says: "lay out the disk"},
		{name: "a sparse file of 4 TiB", layers: raw(gz(sparse)), says: "bytes unpacked"},
		{name: "a gzip bomb", layers: raw(zeros(t, true, 128<<20, byGzip)), says: "bytes unpacked"},
		{name: "a zstd bomb", layers: raw(zeros(t, true, 128<<20, byZstd)), says: "bytes unpacked"},
		{name: "a gzip bomb behind the end", layers: raw(zeros(t, false, 128<<20, byGzip)), says: "unpack to more"},
		{name: "a zstd bomb behind the end", layers: raw(zeros(t, false, 128<<20, byZstd)), says: "unpack to more"},
		{name: "a bomb in thirty layers", layers: padding, says: "unpack to more"},
		{name: "a zstd window of 2 GiB", layers: raw([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x03, 0x00, 0x10, 'x'}), says: "decode archive"},
		{name: "a stream cut short", layers: raw(gz(archive(t, file("a", 0o644, strings.Repeat("abc", 5000))))[:100]), says: "decode archive"},
		{name: "no archive", layers: raw(gz(bytes.Repeat([]byte("junk"), 1000))), says: "decode archive"},
		{name: "a layer longer than it says", layers: good, change: func(m *v1.Manifest) { m.Layers[0].Size-- }, says: "longer than"},
		{name: "a layer shorter than it says", layers: good, change: func(m *v1.Manifest) { m.Layers[0].Size++ }, says: "bytes, want"},
		{name: "a layer of a negative size", layers: good, change: func(m *v1.Manifest) { m.Layers[0].Size = -1 }, says: "of -1 bytes"},
		{name: "a layer of an absurd size", layers: good, change: func(m *v1.Manifest) { m.Layers[0].Size = 1 << 62 }, says: "in all"},
		{name: "layers whose sizes overflow", layers: append(good, good...), change: func(m *v1.Manifest) { m.Layers[1].Size = 1<<63 - 1 }, says: "in all"},
		{name: "a digest that is a path", layers: good, change: func(m *v1.Manifest) { m.Layers[0].Digest.Hex = up + canary[1:] + "/secret" }, says: "decode manifest"},
		{name: "a digest of another kind", layers: good, change: func(m *v1.Manifest) { m.Layers[0].Digest.Algorithm = "md5" }, says: "decode manifest"},
		{name: "a layer from elsewhere", layers: good, change: func(m *v1.Manifest) { m.Layers[0].URLs = []string{other.URL + "/layer"} }},
		{name: "a layer that is only elsewhere", layers: good, change: func(m *v1.Manifest) {
			m.Layers[0].URLs, m.Layers[0].MediaType = []string{other.URL + "/layer"}, types.OCIRestrictedLayer
		}, says: "has the type"},
		{name: "thousands of layers", layers: good, change: func(m *v1.Manifest) {
			for range 5000 {
				m.Layers = append(m.Layers, m.Layers[0])
			}
		}, says: "5001 layers, want at most 256"},
		{name: "a giant manifest", layers: good, change: func(m *v1.Manifest) { m.Annotations = map[string]string{"a": strings.Repeat("x", maxManifestBytes)} }, says: "sent more than allowed"},
		{name: "a giant configuration", layers: good, config: `{"os":"linux","architecture":"amd64","x":"` + strings.Repeat("x", 2<<20) + `"}`, says: "want at most 1048576"},
		{name: "a configuration longer than it says", layers: good, config: strings.Repeat("x", 2<<20), change: func(m *v1.Manifest) { m.Config.Size = 10 }, says: "longer than"},
		{name: "a configuration without end", layers: good, config: strings.Repeat("[", 1<<20), says: "decode configuration"},
		{name: "a configuration with a NUL", layers: good, config: `{"os":"linux","architecture":"amd64","config":{"Entrypoint":["a\u0000b"]}}`, says: "NUL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ref := pushHostile(t, r, strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(tt.name)), tt.config, tt.layers, tt.change)
			start := allocated()
			img, err := s.Pull(t.Context(), ref, PullOptions{})
			// A good image costs a few MiB: buffers of the copies and of the writer of ext4. Following
			// long links costs more, none of which is kept.
			if cost, most := allocated()-start, max(tt.cost, 64<<20); cost > most {
				t.Errorf("the pull allocated %d bytes, want at most %d", cost, most)
			}
			if tt.says == "" && err == nil {
				img.Release()
			} else if tt.says == "" || !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %.500v, want ErrCorrupt that says %q", err, tt.says)
			}
			if err != nil && len(err.Error()) > 2000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
	if diff := cmp.Diff(before, census(t, canary)); diff != "" {
		t.Errorf("outside the store: %s", diff)
	}
	if all, err := os.ReadDir(base); err != nil || len(all) != 2 {
		t.Errorf("beside the store are %v, %v", all, err)
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("%d requests went where only the image wanted them to", n)
	}
	known, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	wantClean(t, dir, len(known))
}

// pushHostile puts an image into the registry whose manifest says what change makes of it.
func pushHostile(t *testing.T, r *images.Registry, tag, config string, layers []v1.Layer, change func(*v1.Manifest)) string {
	t.Helper()
	if config == "" {
		config = `{"os":"linux","architecture":"amd64"}`
	}
	ref, err := name.ParseReference(r.Addr()+"/"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	add := func(l v1.Layer) v1.Descriptor {
		if err := remote.WriteLayer(ref.Context(), l); err != nil {
			t.Fatal(err)
		}
		digest, derr := l.Digest()
		size, serr := l.Size()
		kind, kerr := l.MediaType()
		if err := errors.Join(derr, serr, kerr); err != nil {
			t.Fatal(err)
		}
		return v1.Descriptor{MediaType: kind, Size: size, Digest: digest}
	}
	m.Config = add(static.NewLayer([]byte(config), types.OCIConfigJSON))
	for _, l := range layers {
		m.Layers = append(m.Layers, add(l))
	}
	if change != nil {
		change(&m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Put(ref, rawManifest(b)); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

// TestRedirectCarriesNoCredentials: a registry that sends the node elsewhere for a blob, as many
// do, does not send the pull secret along.
func TestRedirectCarriesNoCredentials(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{User: "u", Password: "p"})
	push(t, r, "app", small(t, "amd64"))
	var asked, told atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked.Add(1)
		if req.Header.Get("Authorization") != "" {
			told.Add(1)
		}
		req.SetBasicAuth("u", "p") // the blob is good
		r.ServeHTTP(w, req)
	}))
	defer other.Close()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, _, ok := req.BasicAuth(); ok && images.IsBlob(req.URL.Path) {
			http.Redirect(w, req, other.URL+req.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		r.ServeHTTP(w, req)
	}))
	defer front.Close()
	addr, elsewhere := front.Listener.Addr().String(), other.Listener.Addr().String()
	opts := testOptions(r)
	opts.InsecureRegistries = []string{addr, elsewhere}
	auth := base64.StdEncoding.EncodeToString([]byte("u:p"))
	k, err := KeychainFromSecrets(Secret{Type: SecretTypeDockerConfigJSON, Data: fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, addr, auth)})
	if err != nil {
		t.Fatal(err)
	}
	img, err := openStore(t, t.TempDir(), opts).Pull(t.Context(), addr+"/app", PullOptions{Auth: k})
	if err != nil {
		t.Fatal(err)
	}
	img.Release()
	if asked.Load() == 0 || told.Load() != 0 {
		t.Errorf("of %d requests elsewhere %d had the credentials", asked.Load(), told.Load())
	}
}
