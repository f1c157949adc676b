// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const testToken = "abcdef.0123456789abcdef"

func TestParseToken(t *testing.T) {
	for text, ok := range map[string]bool{
		testToken: true, " " + testToken + "\n": true, "": false, "abcdef": false, "abcde.0123456789abcdef": false,
		"ABCDEF.0123456789ABCDEF": false, testToken + "0": false, testToken + "\n" + testToken: false,
	} {
		token, err := ParseToken(text)
		if (err == nil) != ok {
			t.Errorf("%q: error %v, want ok %t", text, err, ok)
		}
		if ok && (token.Bearer() != testToken || strings.Contains(fmt.Sprint(token), "0123456789abcdef")) {
			t.Errorf("%q: read as %s, shown as %v", text, token.Bearer(), token)
		}
		if err != nil && len(text) > 10 && strings.Contains(err.Error(), text) {
			t.Errorf("the error gives the token away: %v", err)
		}
	}
}

func TestParseCAHash(t *testing.T) {
	digits := strings.Repeat("ab", sha256.Size)
	for text, ok := range map[string]bool{
		"sha256:" + digits: true, "SHA256:" + strings.ToUpper(digits): true, digits: false, "sha1:" + digits: false,
		"sha256:" + digits[2:]: false, "sha256:": false, "": false, "sha256:zz": false,
	} {
		sum, err := ParseCAHash(text)
		if (err == nil) != ok || ok && hex.EncodeToString(sum[:]) != digits {
			t.Errorf("%q: %x, %v", text, sum, err)
		}
	}
}

// sign is what the control plane does with a token.
func sign(content, id, secret, algorithm string) string {
	header := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":%q,"kid":%q}`, algorithm, id))
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%s.%s", header, base64.RawURLEncoding.EncodeToString([]byte(content)))
	return header + ".." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func TestSigned(t *testing.T) {
	token, err := ParseToken(testToken)
	if err != nil {
		t.Fatal(err)
	}
	// Computed by openssl: printf %s HEADER.CONTENT | openssl dgst -sha256 -hmac SECRET -binary | basenc --base64url
	const outside = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..psz1NayrXM3IaFzKZGsb5n_mBl7MjtlsZ1xE8MRmF_4"
	good := sign("content", "abcdef", "0123456789abcdef", "HS256")
	for name, tt := range map[string]struct {
		signature, content string
		want               bool
	}{
		"by openssl":        {outside, "content", true},
		"right":             {good, "content", true},
		"other content":     {good, "content2", false},
		"other secret":      {sign("content", "abcdef", "0123456789abcdee", "HS256"), "content", false},
		"other id":          {sign("content", "abcdee", "0123456789abcdef", "HS256"), "content", false},
		"no algorithm":      {sign("content", "abcdef", "0123456789abcdef", "none"), "content", false},
		"attached":          {strings.Replace(good, "..", ".Y29udGVudA.", 1), "content", false},
		"without signature": {good[:strings.LastIndex(good, ".")+1], "content", false},
		"no signature":      {"", "content", false},
		"two parts":         {"a.b", "content", false},
		"not base64":        {"?..?", "content", false},
	} {
		if got := signed(tt.signature, tt.content, token); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}

// infoServer is an API server that serves a cluster-info.
func infoServer(t *testing.T, certificate tls.Certificate, answer func(w http.ResponseWriter)) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != clusterInfoPath || r.Header.Get("Authorization") != "" {
			t.Errorf("asked for %s with authorization %q: the token must not be sent", r.URL.Path, r.Header.Get("Authorization"))
		}
		answer(w)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that the client ends
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func info(ca []byte) string {
	return "apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    server: https://inside.test:6443\n    certificate-authority-data: " +
		base64.StdEncoding.EncodeToString(ca) + "\n"
}

func TestDiscover(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	pin, otherPin := CAHash(ca.cert), CAHash(other.cert)
	right := map[string]string{"kubeconfig": info(ca.pem), "jws-kubeconfig-abcdef": sign(info(ca.pem), "abcdef", "0123456789abcdef", "HS256")}
	signedBoth := info(bytes.Join([][]byte{ca.pem, other.pem}, nil))
	for name, tt := range map[string]struct {
		certificate *authority
		data        map[string]string
		status      int
		body        string
		pins        [][sha256.Size]byte
		want        error
		says        string
	}{
		"right":               {pins: [][sha256.Size]byte{pin}},
		"by the certificate":  {pins: [][sha256.Size]byte{Fingerprint(ca.cert)}},
		"one of two":          {pins: [][sha256.Size]byte{otherPin, pin}},
		"unchecked":           {},
		"only the pinned one": {data: map[string]string{"kubeconfig": signedBoth, "jws-kubeconfig-abcdef": sign(signedBoth, "abcdef", "0123456789abcdef", "HS256")}, pins: [][sha256.Size]byte{pin}},
		"wrong hash":          {pins: [][sha256.Size]byte{otherPin}, want: ErrAuthority, says: hex.EncodeToString(pin[:])},
		"somebody between":    {certificate: other, pins: [][sha256.Size]byte{pin}, want: ErrAuthority, says: "something between"},
		"unknown token":       {data: map[string]string{"kubeconfig": info(ca.pem)}, pins: [][sha256.Size]byte{pin}, want: ErrToken, says: "abcdef"},
		"wrong secret": {data: map[string]string{"kubeconfig": info(ca.pem), "jws-kubeconfig-abcdef": sign(info(ca.pem), "abcdef", "x", "HS256")},
			pins: [][sha256.Size]byte{pin}, want: ErrToken, says: "another secret"},
		"no cluster-info":  {status: http.StatusNotFound, want: ErrNoClusterInfo, says: "--bootstrap-kubeconfig"},
		"no strangers":     {status: http.StatusForbidden, want: ErrNoClusterInfo, says: "--bootstrap-kubeconfig"},
		"a sick server":    {status: http.StatusInternalServerError, says: "500"},
		"no API server":    {body: "<html>", says: "is this an API server"},
		"an endless one":   {body: strings.Repeat("x", maxClusterInfo+1), says: "more than"},
		"without clusters": {data: map[string]string{"kubeconfig": "apiVersion: v1\nkind: Config\n", "jws-kubeconfig-abcdef": sign("apiVersion: v1\nkind: Config\n", "abcdef", "0123456789abcdef", "HS256")}, want: ErrAuthority},
	} {
		t.Run(name, func(t *testing.T) {
			server := ca
			if tt.certificate != nil {
				server = tt.certificate
			}
			url := infoServer(t, server.server(t), func(w http.ResponseWriter) {
				data := tt.data
				if data == nil {
					data = right
				}
				switch {
				case tt.status != 0:
					w.WriteHeader(tt.status)
				case tt.body != "":
					_, _ = w.Write([]byte(tt.body))
				default:
					_ = json.NewEncoder(w).Encode(corev1.ConfigMap{Data: data})
				}
			})
			token, err := ParseToken(testToken)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Discover(t.Context(), Discovery{Server: url + "/", Token: token, CAHashes: tt.pins, patience: time.Nanosecond})
			if tt.want == nil && tt.says == "" {
				if err != nil || got.Server != url || !bytes.Equal(got.CA, ca.pem) {
					t.Fatalf("found %s with authority %q, %v", got.Server, got.CA, err)
				}
				return
			}
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), "0123456789abcdef") {
				t.Errorf("the error gives the token away: %v", err)
			}
		})
	}
}

// A token that was made just now is not signed with yet: that passes.
func TestDiscoverWaitsForTheSignature(t *testing.T) {
	ca := newAuthority(t)
	asked := 0
	url := infoServer(t, ca.server(t), func(w http.ResponseWriter) {
		data := map[string]string{"kubeconfig": info(ca.pem)}
		if asked++; asked > 1 {
			data["jws-kubeconfig-abcdef"] = sign(info(ca.pem), "abcdef", "0123456789abcdef", "HS256")
		}
		_ = json.NewEncoder(w).Encode(corev1.ConfigMap{Data: data})
	})
	token, err := ParseToken(testToken)
	if err != nil {
		t.Fatal(err)
	}
	d := Discovery{Server: url, Token: token, CAHashes: [][sha256.Size]byte{CAHash(ca.cert)}, patience: time.Hour}
	if _, err := Discover(t.Context(), d); err != nil || asked != 3 {
		t.Errorf("error %v after %d questions, want none after 3", err, asked)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Discover(ctx, d); !errors.Is(err, context.Canceled) {
		t.Errorf("told to stop: error %v", err)
	}
}

func TestCheckServer(t *testing.T) {
	for server, ok := range map[string]bool{
		"https://192.0.2.1:6443": true, "https://api.example.test": true, "https://[2001:db8::1]:6443/prefix": true,
		"http://192.0.2.1:6443": false, "192.0.2.1:6443": false, "": false, "https://": false, "https://a:b@c": false, "https://c?x=y": false,
	} {
		if err := CheckServer(server); (err == nil) != ok {
			t.Errorf("%q: %v, want ok %t", server, err, ok)
		}
	}
}
