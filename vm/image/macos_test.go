// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/vk-firkin/vk-firkin/test/images"
)

const (
	macDiskBytes  = 3<<20 + 512
	macChunkBytes = 1 << 20
)

// macFiles are the files of a small installation: a disk with a hole in its middle and one
// at its end.
func macFiles(t *testing.T) (MacOSFiles, map[string][]byte) {
	t.Helper()
	dir := t.TempDir()
	random := rand.NewChaCha8([32]byte{1})
	disk := make([]byte, macDiskBytes)
	_, _ = random.Read(disk[:300<<10])
	_, _ = random.Read(disk[2<<20 : 2<<20+5000])
	content := map[string][]byte{"disk": disk, "aux": []byte("auxiliary storage"), "model": []byte("hardware model"), "id": []byte("identifier")}
	for n, b := range content {
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return MacOSFiles{Disk: filepath.Join(dir, "disk"), AuxiliaryStorage: filepath.Join(dir, "aux"), HardwareModel: filepath.Join(dir, "model"), MachineIdentifier: filepath.Join(dir, "id")}, content
}

func macOptions(r *images.Registry) Options {
	o := testOptions(r)
	o.Arch = "arm64"
	return o
}

func pushMac(t *testing.T, r *images.Registry, repo string) (ref string, content map[string][]byte) {
	t.Helper()
	files, content := macFiles(t)
	ref, err := PushMacOS(t.Context(), r.Addr()+"/"+repo, files, PushOptions{InsecureRegistries: []string{r.Addr()}, ChunkBytes: macChunkBytes, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return ref, content
}

func TestMacOSPushAndPull(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	ref, content := pushMac(t, r, "team/macos:15")
	dir := t.TempDir()
	s := openStore(t, dir, macOptions(r))
	tag := r.Addr() + "/team/macos:15"
	img, err := s.Pull(t.Context(), tag, PullOptions{MacOS: true})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(ref, img.Digest) || img.RepoDigest != ref || img.Architecture != "arm64" {
		t.Errorf("pushed %s, pulled %+v", ref, img)
	}
	if img.MacOS == nil || !bytes.Equal(img.MacOS.HardwareModel, content["model"]) || !bytes.Equal(img.MacOS.MachineIdentifier, content["id"]) {
		t.Fatalf("image is %+v", img.MacOS)
	}
	for path, want := range map[string][]byte{img.DiskPath: content["disk"], img.MacOS.AuxiliaryStorage: content["aux"]} {
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has %d bytes (%v) that are not the %d that were pushed", filepath.Base(path), len(got), err, len(want))
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(img.DiskPath, &st); err != nil || st.Blocks*512 > 512<<10 {
		t.Errorf("the disk allocates %d bytes, %v: holes were written", st.Blocks*512, err)
	}
	if img.SizeBytes <= 0 || img.SizeBytes > 512<<10 {
		t.Errorf("the disk is said to cost %d bytes", img.SizeBytes)
	}
	img.Release()

	// It is there, also for a later process and without the registry, and not twice.
	before := r.Count("")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, macOptions(r))
	if img, err = s.Pull(t.Context(), tag, PullOptions{MacOS: true}); err != nil {
		t.Fatal(err)
	}
	if n := r.Count(""); n != before {
		t.Errorf("%d requests for what is here", n-before)
	}
	pinned, err := s.Pin(img.Digest, "owner")
	if err != nil || pinned.MacOS == nil {
		t.Errorf("pinned %+v, %v", pinned, err)
	}
	img.Release()
	if report, err := s.GC(t.Context(), GCOptions{}); err != nil || report.RemovedBytes != 0 {
		t.Errorf("collected %+v, %v while it is pinned", report, err)
	}
	s.Unpin(img.Digest, "owner")
	if report, err := s.GC(t.Context(), GCOptions{}); err != nil || !report.Decisions[0].Remove {
		t.Errorf("collected %+v, %v", report, err)
	}
}

// TestMacOSKinds: neither is taken for the other, and nothing of either is downloaded.
func TestMacOSKinds(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	_, _ = pushMac(t, r, "team/macos:15")
	container := push(t, r, "team/app:1", small(t, "arm64"))
	s := openStore(t, t.TempDir(), macOptions(r))
	for _, tt := range []struct {
		ref   string
		macOS bool
		says  string
	}{
		{container, true, "a container image, not a macOS installation"},
		{r.Addr() + "/team/macos:15", false, "a macOS installation, not a container image"},
	} {
		_, err := s.Pull(t.Context(), tt.ref, PullOptions{MacOS: tt.macOS})
		if !errors.Is(err, ErrWrongKind) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error is %v, want ErrWrongKind that says %q", tt.ref, err, tt.says)
		}
	}
	if n := r.Count("GET", "/blobs/"); n != 0 {
		t.Errorf("%d blobs were downloaded", n)
	}
	// Also when it is here already.
	if _, err := s.Pull(t.Context(), r.Addr()+"/team/macos:15", PullOptions{MacOS: true}); err != nil {
		t.Fatal(err)
	}
	for _, policy := range []Policy{PullNever, PullIfNotPresent, PullAlways} {
		if _, err := s.Pull(t.Context(), r.Addr()+"/team/macos:15", PullOptions{Policy: policy}); !errors.Is(err, ErrWrongKind) {
			t.Errorf("%s: error is %v, want ErrWrongKind", policy, err)
		}
	}
	amd64 := testOptions(r)
	other := openStore(t, t.TempDir(), amd64)
	if _, err := other.Pull(t.Context(), r.Addr()+"/team/macos:15", PullOptions{MacOS: true}); !errors.Is(err, ErrPlatform) {
		t.Errorf("on another architecture: error is %v, want ErrPlatform", err)
	}
}

// artifact is a hand-made one.
type artifact struct {
	config string
	layers []v1.Layer
	change func(*v1.Manifest)
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b)
	_ = z.Close()
	return out.Bytes()
}

func (a artifact) push(t *testing.T, r *images.Registry, tag string) string {
	t.Helper()
	ref, err := name.ParseReference(r.Addr()+"/"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: TypeMacOS}
	add := func(l v1.Layer) v1.Descriptor {
		if err := remote.WriteLayer(ref.Context(), l); err != nil {
			t.Fatal(err)
		}
		digest, _ := l.Digest()
		size, _ := l.Size()
		kind, _ := l.MediaType()
		return v1.Descriptor{MediaType: kind, Size: size, Digest: digest}
	}
	m.Config = add(static.NewLayer([]byte(a.config), TypeMacOSConfig))
	for _, l := range a.layers {
		m.Layers = append(m.Layers, add(l))
	}
	if a.change != nil {
		a.change(&m)
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

const goodMacConfig = `{"version":1,"architecture":"arm64","diskBytes":1024,"auxiliaryBytes":3}`

func goodMacLayers(disk ...v1.Layer) []v1.Layer {
	return append([]v1.Layer{
		static.NewLayer([]byte("aux"), TypeMacOSAuxiliary), static.NewLayer([]byte("model"), TypeMacOSHardware), static.NewLayer([]byte("id"), TypeMacOSIdentifier),
	}, disk...)
}

// TestMacOSHostile: whatever a registry sends, the store keeps nothing of what is wrong.
func TestMacOSHostile(t *testing.T) {
	plain := static.NewLayer(make([]byte, 1024), TypeMacOSDisk)
	half := static.NewLayer(gz(bytes.Repeat([]byte("x"), 512)), TypeMacOSDisk+suffixGzip)
	bomb := static.NewLayer(gz(make([]byte, 64<<20)), TypeMacOSDisk+suffixGzip)
	cut := gz(bytes.Repeat([]byte("abcdefgh"), 128))
	r := testRegistry(t, images.RegistryOptions{})
	dir := t.TempDir()
	opts := macOptions(r)
	s := openStore(t, dir, opts)
	for _, tt := range []struct {
		name string
		a    artifact
		ok   bool
	}{
		{"plain", artifact{config: goodMacConfig, layers: goodMacLayers(plain)}, true},
		{"gzip in two parts", artifact{config: goodMacConfig, layers: goodMacLayers(half, half)}, true},
		{"without artifactType", artifact{config: goodMacConfig, layers: goodMacLayers(half, plain), change: func(m *v1.Manifest) {
			m.ArtifactType, m.Layers = "", append(m.Layers[:3:3], m.Layers[4])
		}}, true},
		{"no disk", artifact{config: goodMacConfig, layers: goodMacLayers()}, false},
		{"no auxiliary storage", artifact{config: goodMacConfig, layers: goodMacLayers(plain)[1:]}, false},
		{"two identifiers", artifact{config: goodMacConfig, layers: append(goodMacLayers(plain), static.NewLayer([]byte("other"), TypeMacOSIdentifier))}, false},
		{"a strange layer", artifact{config: goodMacConfig, layers: append(goodMacLayers(plain), static.NewLayer([]byte("x"), types.OCILayer))}, false},
		{"a compressed identifier", artifact{config: goodMacConfig, layers: append(goodMacLayers(plain)[1:], static.NewLayer(gz([]byte("aux")), TypeMacOSIdentifier+suffixGzip))}, false},
		{"too little", artifact{config: goodMacConfig, layers: goodMacLayers(half)}, false},
		{"too much", artifact{config: goodMacConfig, layers: goodMacLayers(plain, half)}, false},
		{"a bomb", artifact{config: goodMacConfig, layers: goodMacLayers(bomb)}, false},
		{"not gzip", artifact{config: goodMacConfig, layers: goodMacLayers(static.NewLayer(make([]byte, 1024), TypeMacOSDisk+suffixGzip))}, false},
		{"not zstd", artifact{config: goodMacConfig, layers: goodMacLayers(static.NewLayer(make([]byte, 1024), TypeMacOSDisk+suffixZstd))}, false},
		{"gzip cut short", artifact{config: goodMacConfig, layers: goodMacLayers(static.NewLayer(cut[:len(cut)-6], TypeMacOSDisk+suffixGzip))}, false},
		{"an auxiliary storage too long", artifact{config: goodMacConfig, layers: append(goodMacLayers(plain)[1:], static.NewLayer([]byte("auxi"), TypeMacOSAuxiliary))}, false},
		{"configuration is no JSON", artifact{config: `{`, layers: goodMacLayers(plain)}, false},
		{"configuration of another version", artifact{config: strings.Replace(goodMacConfig, `1`, `2`, 1), layers: goodMacLayers(plain)}, false},
		{"configuration with more", artifact{config: strings.Replace(goodMacConfig, `{`, `{"x":1,`, 1), layers: goodMacLayers(plain)}, false},
		{"odd disk", artifact{config: strings.Replace(goodMacConfig, `1024`, `1000`, 1), layers: goodMacLayers(plain)}, false},
		{"huge disk", artifact{config: strings.Replace(goodMacConfig, `1024`, `9007199254740992`, 1), layers: goodMacLayers(plain)}, false},
		{"negative disk", artifact{config: strings.Replace(goodMacConfig, `1024`, `-1024`, 1), layers: goodMacLayers(plain)}, false},
		{"a size that lies", artifact{config: goodMacConfig, layers: goodMacLayers(plain), change: func(m *v1.Manifest) { m.Layers[3].Size++ }}, false},
		{"no size", artifact{config: goodMacConfig, layers: goodMacLayers(plain), change: func(m *v1.Manifest) { m.Layers[3].Size = 0 }}, false},
		{"absurd sizes", artifact{config: goodMacConfig, layers: goodMacLayers(plain), change: func(m *v1.Manifest) { m.Layers[3].Size = 1 << 62 }}, false},
		{"an absurd model", artifact{config: goodMacConfig, layers: goodMacLayers(plain), change: func(m *v1.Manifest) { m.Layers[1].Size = 1 << 20 }}, false},
		{"another digest", artifact{config: goodMacConfig, layers: goodMacLayers(plain), change: func(m *v1.Manifest) { m.Layers[3].Digest = m.Layers[2].Digest }}, false},
		{"configuration of a container", artifact{config: goodMacConfig, layers: goodMacLayers(plain), change: func(m *v1.Manifest) { m.Config.MediaType = types.OCIConfigJSON }}, false},
		{"very many layers", artifact{config: goodMacConfig, layers: goodMacLayers(plain), change: func(m *v1.Manifest) {
			for range maxMacOSChunks + 1 {
				m.Layers = append(m.Layers, m.Layers[3])
			}
		}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ref := tt.a.push(t, r, "team/"+strings.ReplaceAll(strings.ToLower(tt.name), " ", "-"))
			img, err := s.Pull(t.Context(), ref, PullOptions{MacOS: true})
			if tt.ok {
				if err != nil {
					t.Fatal(err)
				}
				img.Release()
				return
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error is %v, want ErrCorrupt", err)
			}
		})
	}
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, d := range all {
		if strings.HasPrefix(d.Name(), tmpPrefix) {
			t.Errorf("%s is left", d.Name())
		}
		if validHex(d.Name()) {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d images are here, want the three good ones", n)
	}
}

// TestMacOSNoSpace: the floor is kept while a disk is unpacked.
func TestMacOSNoSpace(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	_, _ = pushMac(t, r, "team/macos:15")
	opts := macOptions(r)
	opts.MinFreeBytes, opts.FreeBytes = 1<<30, func() (int64, error) { return 1<<30 + 1000, nil }
	s := openStore(t, t.TempDir(), opts)
	if _, err := s.Pull(t.Context(), r.Addr()+"/team/macos:15", PullOptions{MacOS: true}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("error is %v, want ErrNoSpace", err)
	}
}

// TestMacOSInterrupted: a pull that is given up leaves nothing, and the next one succeeds.
func TestMacOSInterrupted(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	_, _ = pushMac(t, r, "team/macos:15")
	dir := t.TempDir()
	s := openStore(t, dir, macOptions(r))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Pull(ctx, r.Addr()+"/team/macos:15", PullOptions{MacOS: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want the context's", err)
	}
	img, err := s.Pull(t.Context(), r.Addr()+"/team/macos:15", PullOptions{MacOS: true})
	if err != nil {
		t.Fatal(err)
	}
	img.Release()
	// A file that is not as long as its record says is no image.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img.MacOS.AuxiliaryStorage, 1); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, macOptions(r))
	if _, err := s.Pull(t.Context(), r.Addr()+"/team/macos:15", PullOptions{MacOS: true, Policy: PullNever}); !errors.Is(err, ErrNeverPull) {
		t.Errorf("error is %v, want ErrNeverPull: it was damaged", err)
	}
}

func FuzzMacOSManifest(f *testing.F) {
	digest := "sha256:" + strings.Repeat("a", 64)
	f.Add([]byte(`{"schemaVersion":2,"artifactType":"`+TypeMacOS+`","config":{"mediaType":"`+TypeMacOSConfig+`","size":80,"digest":"`+digest+`"},"layers":[`+
		`{"mediaType":"`+TypeMacOSDisk+`+zstd","size":10,"digest":"`+digest+`"},{"mediaType":"`+TypeMacOSAuxiliary+`","size":10,"digest":"`+digest+`"},`+
		`{"mediaType":"`+TypeMacOSHardware+`","size":10,"digest":"`+digest+`"},{"mediaType":"`+TypeMacOSIdentifier+`","size":10,"digest":"`+digest+`"}]}`), []byte(goodMacConfig))
	f.Add([]byte(`{"layers":[{}]}`), []byte(`{"version":1,"diskBytes":-1}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		if c, err := decodeMacOSConfig(config); err == nil && (c.DiskBytes <= 0 || c.DiskBytes > maxMacOSDiskBytes || c.AuxiliaryBytes <= 0 || c.AuxiliaryBytes > maxMacOSAuxiliary) {
			t.Errorf("accepted %+v", c)
		} else if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("error is %v, want ErrCorrupt", err)
		}
		m, err := v1.ParseManifest(bytes.NewReader(manifest))
		if err != nil {
			return
		}
		parts, err := macOSPartsOf(m)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error is %v, want ErrCorrupt", err)
			}
			return
		}
		total := int64(0)
		for _, l := range append(parts.disk, parts.auxiliary, parts.hardware, parts.identifier) {
			if l.Size <= 0 || !validDigest(l.Digest.String()) {
				t.Errorf("accepted layer %+v", l)
			}
			total += l.Size
		}
		if total > maxMacOSDiskBytes || total < 0 {
			t.Errorf("accepted %d bytes", total)
		}
	})
}
