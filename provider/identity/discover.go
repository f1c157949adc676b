// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
)

const (
	clusterInfoPath = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
	// maxClusterInfo bounds what is read of a server that nobody has proved yet.
	maxClusterInfo = 1 << 20
	askTimeout     = 10 * time.Second
	// signingPeriod is how long a token that was made just now may be without its signature.
	signingPeriod = 5 * time.Second
	signingPoll   = time.Second
)

// Token is a bootstrap token.
type Token struct{ ID, secret string }

// tokenPattern is that of k8s.io/cluster-bootstrap/token/api.
var tokenPattern = regexp.MustCompile(`\A([a-z0-9]{6})\.([a-z0-9]{16})\z`)

// ParseToken reads a token as people copy it. The error does not repeat it: it is a secret.
func ParseToken(s string) (Token, error) {
	m := tokenPattern.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return Token{}, fmt.Errorf("not a bootstrap token: want 6 characters, a dot and 16 characters, of a-z and 0-9 (%s)", newToken)
	}
	return Token{ID: m[1], secret: m[2]}, nil
}

// Bearer is what the API server is shown.
func (t Token) Bearer() string { return t.ID + "." + t.secret }

// String names the token without giving it away.
func (t Token) String() string { return t.ID + ".****************" }

// ParseCAHash reads the hash of a public key, as kubeadm writes it: sha256:HEX.
func ParseCAHash(s string) ([sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	kind, digits, _ := strings.Cut(strings.ToLower(strings.TrimSpace(s)), ":")
	b, err := hex.DecodeString(digits)
	if err != nil || kind != "sha256" || len(b) != len(sum) {
		return sum, fmt.Errorf("hash of an authority %q: want sha256: and 64 hexadecimal digits", s)
	}
	copy(sum[:], b)
	return sum, nil
}

// CAHash is the hash of a certificate's public key (RFC 7469, and kubeadm's --discovery-token-ca-cert-hash).
func CAHash(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// Fingerprint is the hash of a whole certificate, as openssl x509 -fingerprint -sha256 shows it. It pins no
// less, and a chart can compute it, which cannot take a certificate apart.
func Fingerprint(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.Raw) }

// Discovery is what a person knows of a cluster.
type Discovery struct {
	// Server is the API server's URL, as this host reaches it.
	Server string
	Token  Token
	// CAHashes are the hashes of the cluster's authorities: of the public key, or of the certificate.
	// Without any, whoever has the token and can answer for the server is believed.
	CAHashes [][sha256.Size]byte

	patience time.Duration // 0: signingPeriod
}

// Cluster is where a cluster is and how it is recognized.
type Cluster struct {
	Server string
	// CA has the certificates of its authorities, as PEM.
	CA []byte
}

// CheckServer wants a URL of an API server.
func CheckServer(server string) error {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("API server %q: want a URL such as https://192.0.2.1:6443", server)
	}
	return nil
}

// Discover asks a server that nobody has proved yet for its cluster-info, believes it when the
// token has signed it and its authority is the expected one, and asks again with that authority. The server's
// address stays the one that was given: the one in cluster-info may be of a network that this host is not in.
func Discover(ctx context.Context, d Discovery) (Cluster, error) {
	if err := CheckServer(d.Server); err != nil {
		return Cluster{}, err
	}
	d.Server = strings.TrimSuffix(d.Server, "/")
	// Nothing secret is sent over it, and nothing that comes over it is believed as such.
	info, err := d.signedInfo(ctx, &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}) //nolint:gosec // see above
	if err != nil {
		return Cluster{}, err
	}
	ca, err := d.authorities(info)
	if err != nil {
		return Cluster{}, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	proved, err := d.clusterInfo(ctx, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots})
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return Cluster{}, remedy(ErrAuthority, "the server at %s has a certificate of another authority than its cluster-info says: something between this host and the cluster answers for it (%w)", d.Server, err)
	case err != nil:
		return Cluster{}, err
	case proved.Data["kubeconfig"] != info:
		return Cluster{}, remedy(ErrAuthority, "the cluster-info of %s was another one when it was asked for a second time: try again", d.Server)
	}
	return Cluster{Server: d.Server, CA: ca}, nil
}

// signedInfo returns the kubeconfig in cluster-info, once it is signed with the token.
func (d Discovery) signedInfo(ctx context.Context, config *tls.Config) (string, error) {
	deadline := time.Now().Add(cmp.Or(d.patience, signingPeriod))
	for {
		info, err := d.clusterInfo(ctx, config)
		if err != nil {
			return "", err
		}
		content := info.Data["kubeconfig"]
		signature, ok := info.Data["jws-kubeconfig-"+d.Token.ID]
		if ok {
			if !signed(signature, content, d.Token) {
				return "", remedy(ErrToken, "cluster-info of %s is signed with another secret than that of token %s: compare what was typed with what the cluster's administrator gave you, or %s", d.Server, d.Token, newToken)
			}
			return content, nil
		}
		if time.Now().After(deadline) {
			return "", remedy(ErrToken, "it has none with the id %s that may sign cluster-info: it has expired, was deleted, or is of another cluster; %s", d.Token.ID, newToken)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(signingPoll):
		}
	}
}

// clusterInfo asks the server, as nobody.
func (d Discovery) clusterInfo(ctx context.Context, config *tls.Config) (*corev1.ConfigMap, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, DisableKeepAlives: true, ForceAttemptHTTP2: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.Server+clusterInfoPath, http.NoBody)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its cluster-info: is it the API server, and can this host reach it? %w", d.Server, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxClusterInfo+1))
	if err != nil {
		return nil, fmt.Errorf("read the cluster-info of %s: %w", d.Server, err)
	}
	switch {
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return nil, remedy(ErrNoClusterInfo, "%s answers %q to a request for kube-public/cluster-info without credentials, which clusters made by kubeadm or kind have: join with --bootstrap-kubeconfig instead", d.Server, resp.Status)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("ask %s for its cluster-info: it answers %q", d.Server, resp.Status)
	case len(body) > maxClusterInfo:
		return nil, fmt.Errorf("cluster-info of %s has more than %d bytes: this is no API server", d.Server, maxClusterInfo)
	}
	info := &corev1.ConfigMap{}
	if err := json.Unmarshal(body, info); err != nil {
		return nil, fmt.Errorf("cluster-info of %s is no ConfigMap, is this an API server? %w", d.Server, err)
	}
	return info, nil
}

// authorities are the certificates in a kubeconfig that are expected, all of them when nothing is.
func (d Discovery) authorities(kubeconfig string) ([]byte, error) {
	config, err := clientcmd.Load([]byte(kubeconfig))
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig in cluster-info of %s: %w", d.Server, err)
	}
	var certs []*x509.Certificate
	for _, c := range config.Clusters {
		some, err := cert.ParseCertsPEM(c.CertificateAuthorityData)
		if err != nil || len(config.Clusters) != 1 {
			return nil, fmt.Errorf("cluster-info of %s names no authority that can be read (%w): join with --bootstrap-kubeconfig instead", d.Server, errors.Join(err, errMany(len(config.Clusters))))
		}
		certs = some
	}
	var kept []byte
	var found []string
	for _, c := range certs {
		sum := CAHash(c)
		found = append(found, "sha256:"+hex.EncodeToString(sum[:]))
		if len(d.CAHashes) == 0 || slices.Contains(d.CAHashes, sum) || slices.Contains(d.CAHashes, Fingerprint(c)) {
			kept = append(kept, pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: c.Raw})...)
		}
	}
	if len(kept) == 0 {
		return nil, remedy(ErrAuthority, "that of %s has the hash %s: when the cluster's administrator says so too, join with it; else something between this host and the cluster answers for it", d.Server, strings.Join(found, ", "))
	}
	return kept, nil
}

func errMany(n int) error {
	if n == 1 {
		return nil
	}
	return fmt.Errorf("it has %d clusters", n)
}

// signed checks a detached JSON web signature (RFC 7515, appendix F) as Kubernetes signs
// cluster-info: HMAC with SHA-256, keyed with the token's secret.
func signed(signature, content string, token Token) bool {
	parts := strings.Split(signature, ".")
	if len(parts) != 3 || parts[1] != "" {
		return false
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil {
		return false
	}
	var header struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
	}
	if json.Unmarshal(text, &header) != nil || header.Algorithm != "HS256" || header.KeyID != token.ID {
		return false
	}
	given, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return false
	}
	mac := hmac.New(sha256.New, []byte(token.secret))
	mac.Write([]byte(parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(content))))
	return hmac.Equal(given, mac.Sum(nil))
}
