// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// pollEvery: the whole start takes seconds, and a question costs the API server a millisecond.
	pollEvery = 50 * time.Millisecond
	// askTimeout bounds one question: a server that has just begun to listen may not answer.
	askTimeout = 5 * time.Second
	maxAnswer  = 1 << 20
)

// apiClient speaks to the API server as the administrator.
type apiClient struct {
	http   *http.Client
	server string
}

func newAPIClient(server string, ca, user *pair) *apiClient {
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	return &apiClient{
		server: server,
		http: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			RootCAs:    roots,
			Certificates: []tls.Certificate{{
				Certificate: [][]byte{user.cert.Raw}, PrivateKey: user.key, Leaf: user.cert,
			}},
		}}},
	}
}

func (a *apiClient) close() { a.http.CloseIdleConnections() }

func (a *apiClient) do(ctx context.Context, method, path string, body []byte) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, a.server+path, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, string(answer), err
}

// waitOK asks for path until the answer is 200 OK. It returns the context's cause, with the last answer, when
// the context ends first.
func (a *apiClient) waitOK(ctx context.Context, path string) error {
	return poll(ctx, path, func() error {
		status, answer, err := a.do(ctx, http.MethodGet, path, nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s: %s", status, http.StatusText(status), answer)
		}
		return err
	})
}

// kubeletAPIAdmin lets the API server's own client identity use a kubelet's API: a kubelet (or a
// virtual one) that asks the API server whether it may serve logs or exec gets a yes.
const kubeletAPIAdmin = `{
  "apiVersion": "rbac.authorization.k8s.io/v1",
  "kind": "ClusterRoleBinding",
  "metadata": {"name": "firkin-apiserver-kubelet-client"},
  "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:kubelet-api-admin"},
  "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "` + userKubeletClient + `"}]
}`

// bindKubeletClient creates the binding; one that exists is left as it is.
func (a *apiClient) bindKubeletClient(ctx context.Context) error {
	const path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
	return poll(ctx, path, func() error { return a.create(ctx, path, []byte(kubeletAPIAdmin)) })
}

// create creates an object; one that exists is left as it is.
func (a *apiClient) create(ctx context.Context, path string, object []byte) error {
	status, answer, err := a.do(ctx, http.MethodPost, path, object)
	if err == nil && status != http.StatusCreated && status != http.StatusConflict {
		err = fmt.Errorf("%d %s: %s", status, http.StatusText(status), answer)
	}
	return err
}

// waitSocket waits until somebody listens on a unix socket.
func waitSocket(ctx context.Context, path string) error {
	return poll(ctx, path, func() error {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

// poll repeats ask until it returns nil or ctx ends.
func poll(ctx context.Context, what string, ask func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var last error
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // the end of ctx is no answer
			last = err
		}
		select {
		case <-ctx.Done():
			cause := context.Cause(ctx)
			if errors.As(cause, new(*diedError)) {
				return cause // says it all, and ends with a log
			}
			return fmt.Errorf("%w (waiting for %s: %v)", cause, what, last)
		case <-tick.C:
		}
	}
}
