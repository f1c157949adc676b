// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"sort"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// The types of pull secrets, in Kubernetes' words.
const (
	SecretTypeDockerConfigJSON = "kubernetes.io/dockerconfigjson"
	SecretTypeDockercfg        = "kubernetes.io/dockercfg"
)

// maxSecretBytes is the size limit of a Kubernetes Secret.
const maxSecretBytes = 1 << 20

// Secret is a pull secret: its type and the bytes of its one key
// (".dockerconfigjson" or ".dockercfg").
type Secret struct {
	Type string
	Data []byte
}

// Keychain finds the credentials for an image as the kubelet does: by registry
// host (shell patterns allowed per label), port and path prefix, the longest
// match first. It never changes.
type Keychain struct {
	entries []credential // most specific first
}

type credential struct {
	host, port, path string
	auth             authn.AuthConfig
}

// KeychainFromSecrets decodes pull secrets. It is pure. No secrets give a
// keychain that knows nothing, which means anonymous access. The error says which
// secret, by its place, is malformed, and never repeats its content.
func KeychainFromSecrets(secrets ...Secret) (*Keychain, error) {
	k := &Keychain{}
	for i, s := range secrets {
		if len(s.Data) > maxSecretBytes {
			return nil, fmt.Errorf("decode pull secret %d: %d bytes, want at most %d", i, len(s.Data), maxSecretBytes)
		}
		var auths map[string]authn.AuthConfig
		var err error
		switch s.Type {
		case SecretTypeDockerConfigJSON:
			var file struct {
				Auths map[string]authn.AuthConfig `json:"auths"`
			}
			err = json.Unmarshal(s.Data, &file)
			auths = file.Auths
		case SecretTypeDockercfg:
			err = json.Unmarshal(s.Data, &auths)
		default:
			return nil, fmt.Errorf("decode pull secret %d: type %q, want %s or %s", i, s.Type, SecretTypeDockerConfigJSON, SecretTypeDockercfg)
		}
		if err != nil {
			// The decoder's message may quote the secret.
			return nil, fmt.Errorf("decode pull secret %d of type %s: not the JSON of a docker configuration", i, s.Type)
		}
		for key, auth := range auths {
			c, ok := parseCredentialKey(key)
			if !ok {
				return nil, fmt.Errorf("decode pull secret %d: registry %q is not a host with an optional path", i, key)
			}
			c.auth = auth
			k.entries = append(k.entries, c)
		}
	}
	// Stable: of equally specific entries the earlier secret wins. Within one
	// secret keys differ, so map order does not matter.
	sort.SliceStable(k.entries, func(a, b int) bool {
		x, y := k.entries[a], k.entries[b]
		if len(x.path) != len(y.path) {
			return len(x.path) > len(y.path)
		}
		return !strings.ContainsAny(x.host, "*?[") && strings.ContainsAny(y.host, "*?[")
	})
	return k, nil
}

// parseCredentialKey reads the key of a docker configuration's entry: a host, a
// host and a path, or the address of a registry's API ("https://host/v1/").
func parseCredentialKey(key string) (credential, bool) {
	if !strings.Contains(key, "://") {
		key = "https://" + key
	}
	u, err := url.Parse(key)
	if err != nil || u.Host == "" {
		return credential{}, false
	}
	p := u.Path
	for _, v := range []string{"/v1", "/v2"} {
		if p == v || strings.HasPrefix(p, v+"/") {
			p = p[len(v):]
		}
	}
	c := credential{host: u.Hostname(), port: u.Port(), path: strings.Trim(p, "/")}
	if c.host == "docker.io" {
		c.host = name.DefaultRegistry
	}
	if _, err := path.Match(c.host, ""); err != nil {
		return credential{}, false
	}
	return c, true
}

func (c credential) matches(target authn.Resource) bool {
	u, err := url.Parse("https://" + target.RegistryStr())
	if err != nil || u.Port() != c.port {
		return false
	}
	want, got := strings.Split(c.host, "."), strings.Split(u.Hostname(), ".")
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], got[i]); err != nil || !ok {
			return false
		}
	}
	repo := strings.TrimPrefix(strings.TrimPrefix(target.String(), target.RegistryStr()), "/")
	return c.path == "" || repo == c.path || strings.HasPrefix(repo, c.path+"/")
}

// Candidates returns every credential for the target, the best match first.
func (k *Keychain) Candidates(target authn.Resource) []authn.AuthConfig {
	if k == nil {
		return nil
	}
	var out []authn.AuthConfig
	for _, c := range k.entries {
		if c.matches(target) {
			out = append(out, c.auth)
		}
	}
	return out
}

// Resolve implements authn.Keychain with the best match, or anonymous access.
func (k *Keychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	if c := k.Candidates(target); len(c) > 0 {
		return authn.FromConfig(c[0]), nil
	}
	return authn.Anonymous, nil
}

// candidates lists what to try for the target, in order; never empty. The kubelet
// tries every matching credential until one is accepted, and only without any
// goes anonymously.
func candidates(k authn.Keychain, target authn.Resource) ([]authn.AuthConfig, error) {
	if k == nil {
		return []authn.AuthConfig{{}}, nil
	}
	if all, ok := k.(interface {
		Candidates(authn.Resource) []authn.AuthConfig
	}); ok {
		if c := all.Candidates(target); len(c) > 0 {
			return c, nil
		}
		return []authn.AuthConfig{{}}, nil
	}
	a, err := k.Resolve(target)
	if err != nil {
		return nil, fmt.Errorf("find credentials: %w", err)
	}
	c, err := a.Authorization()
	if err != nil {
		return nil, fmt.Errorf("find credentials: %w", err)
	}
	return []authn.AuthConfig{*c}, nil
}
