// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/certificate/csr"
	"k8s.io/client-go/util/keyutil"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// The names of a node in certificates, which Kubernetes gives a meaning to.
const (
	userPrefix = "system:node:"
	group      = "system:nodes"
)

// Names in the folder; see the package's comment.
const (
	kubeconfigFile = "kubeconfig"
	clientFile     = "client.pem"
	authorityFile  = "ca.crt"
	servingFile    = "serving.pem"
	requestFile    = "request.key"
)

// KubeconfigPath is where the kubeconfig of a joined node is, in a folder of credentials.
func KubeconfigPath(dir string) string { return filepath.Join(dir, kubeconfigFile) }

// AuthorityPath is where the cluster's authority is, in a folder of credentials.
func AuthorityPath(dir string) string { return filepath.Join(dir, authorityFile) }

// BootstrapConfig is how the API server is asked with a token.
func BootstrapConfig(c Cluster, token Token) *rest.Config {
	return &rest.Config{Host: c.Server, BearerToken: token.Bearer(), TLSClientConfig: rest.TLSClientConfig{CAData: c.CA}}
}

// ReadBootstrapKubeconfig reads a kubeconfig whose user may ask for a certificate.
func ReadBootstrapKubeconfig(path string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("read bootstrap kubeconfig: %w", err)
	}
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("read bootstrap kubeconfig %s: %w", path, err)
	}
	if err := CheckServer(config.Host); err != nil {
		return nil, fmt.Errorf("bootstrap kubeconfig %s: %w", path, err)
	}
	if len(config.CAData) == 0 || config.Insecure {
		return nil, fmt.Errorf("bootstrap kubeconfig %s names no certificate-authority: a node must know the cluster's", path)
	}
	return config, nil
}

// JoinOptions say as whom to join, and with what right.
type JoinOptions struct {
	// Dir is the folder of the credentials.
	Dir string
	// NodeName is the name of the node to be.
	NodeName string
	// Bootstrap may ask for a certificate. It names the cluster's authority by its content.
	Bootstrap *rest.Config
	// Timeout is how long the request may wait for somebody to approve it.
	Timeout time.Duration
	// Waiting is told the name of the request that waits; nil means nobody is.
	Waiting func(request string)
}

// Join asks for a client certificate as the node, waits for it, and keeps all that the node
// needs. Joining again, after an error or a crash, goes on with the same request.
func Join(ctx context.Context, o JoinOptions) error {
	client, err := kubernetes.NewForConfig(o.Bootstrap)
	if err != nil {
		return err
	}
	return o.join(ctx, client)
}

func (o JoinOptions) join(ctx context.Context, client kubernetes.Interface) error {
	if err := durable.MakeDir(durable.Host, o.Dir, durable.Synced); err != nil {
		return fmt.Errorf("make folder of credentials: %w", err)
	}
	if err := durable.Sweep(durable.Host, o.Dir); err != nil {
		return fmt.Errorf("clean folder of credentials: %w", err)
	}
	certPEM, keyPEM, err := o.request(ctx, client)
	if err != nil {
		return err
	}
	c, err := parsePair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("the certificate that the cluster has issued does not fit its request: %w", err)
	}
	if name, err := nameOf(c.Leaf); err != nil || name != o.NodeName {
		return fmt.Errorf("the certificate that the cluster has issued is for %q: want %q", c.Leaf.Subject, userPrefix+o.NodeName)
	}
	// The kubeconfig comes last: with it this host has joined. A serving certificate may be
	// another cluster's.
	if err := durable.Remove(durable.Host, filepath.Join(o.Dir, servingFile), durable.Synced); err != nil {
		return fmt.Errorf("remove former serving certificate: %w", err)
	}
	if _, err := newStore(filepath.Join(o.Dir, clientFile)).Update(certPEM, keyPEM); err != nil {
		return err
	}
	if err := durable.Replace(durable.Host, AuthorityPath(o.Dir), o.Bootstrap.CAData, durable.Synced); err != nil {
		return fmt.Errorf("keep the cluster's authority: %w", err)
	}
	kubeconfig, err := renderKubeconfig(o.Bootstrap.Host, o.Bootstrap.TLSClientConfig.ServerName, o.Bootstrap.CAData, userPrefix+o.NodeName)
	if err != nil {
		return err
	}
	if err := durable.Replace(durable.Host, KubeconfigPath(o.Dir), kubeconfig, durable.Synced); err != nil {
		return fmt.Errorf("keep kubeconfig: %w", err)
	}
	return durable.Remove(durable.Host, filepath.Join(o.Dir, requestFile), durable.Synced)
}

// request returns the certificate and its key.
func (o JoinOptions) request(ctx context.Context, client kubernetes.Interface) (certPEM, keyPEM []byte, err error) {
	var name string
	var uid types.UID
	var key crypto.Signer
	for _, again := range []bool{true, false} {
		if key, keyPEM, err = o.key(); err != nil {
			return nil, nil, err
		}
		if name, uid, err = o.submit(ctx, client, key); err == nil {
			break
		}
		// Any other error says nothing of the request: it may be waiting, or approved by now, and only
		// who has its key can go on with it. client-go has no kind for this one.
		if !strings.Contains(err.Error(), "retrieved csr is not compatible") || !again || ctx.Err() != nil {
			return nil, nil, explainRequest(err)
		}
		// A request with this key is there, and of no use: of another cluster's time, or expired.
		if err := o.forget(); err != nil {
			return nil, nil, err
		}
	}
	if o.Waiting != nil {
		o.Waiting(name)
	}
	within, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	certPEM, err = csr.WaitForCertificate(within, client, name, uid)
	switch {
	case err == nil:
		return certPEM, keyPEM, nil
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case wait.Interrupted(err) || within.Err() != nil:
		return nil, nil, remedy(ErrNotApproved, "%s waits for a decision since %s; `vk-firkin controller` approves it unless the name %s is or was another host's. It says so in an event: look with `kubectl describe csr %s`, approve it with `kubectl certificate approve %s`, and repeat this command: it goes on with the same request",
			name, o.Timeout, o.NodeName, name, name)
	case strings.Contains(err.Error(), "is denied") || strings.Contains(err.Error(), "was deleted") || strings.Contains(err.Error(), "request failed"):
		// client-go has no kinds for these. The next try is to be another request.
		return nil, nil, errors.Join(remedy(ErrDenied, "%s: %w; when that is mended, repeat this command: it makes a new request", name, err), o.forget())
	}
	return nil, nil, fmt.Errorf("wait for the certificate of request %s: %w", name, err)
}

// submit makes the request, or finds the one that was made with this key before.
func (o JoinOptions) submit(ctx context.Context, client kubernetes.Interface, key crypto.Signer) (string, types.UID, error) {
	request, err := cert.MakeCSRFromTemplate(key, clientTemplate(o.NodeName))
	if err != nil {
		return "", "", err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", "", err
	}
	sum := sha256.Sum256(slices.Concat(public, []byte(o.NodeName)))
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return csr.RequestCertificateWithContext(ctx, client, request, "vk-firkin-"+hex.EncodeToString(sum[:10]),
		certificatesv1.KubeAPIServerClientKubeletSignerName, nil, certificate.DefaultKubeletClientGetUsages(key), key)
}

// explainRequest says what can be done when no request could be made.
func explainRequest(err error) error {
	switch {
	case apierrors.IsUnauthorized(err):
		return remedy(ErrToken, "%w: it has expired or was deleted; %s", err, newToken)
	case apierrors.IsForbidden(err):
		return remedy(ErrForbidden, "%w: bind its group to the ClusterRole system:node-bootstrapper, as the chart does for system:bootstrappers:vk-firkin, or use a token of that group", err)
	}
	return fmt.Errorf("ask the cluster for a certificate: %w", err)
}

// key is that of the request that is not answered yet, a new one when there is none.
func (o JoinOptions) key() (crypto.Signer, []byte, error) {
	path := filepath.Join(o.Dir, requestFile)
	keyPEM, err := durable.ReadFile(durable.Host, path, maxPair)
	if err == nil {
		if parsed, err := keyutil.ParsePrivateKeyPEM(keyPEM); err == nil {
			if key, ok := parsed.(crypto.Signer); ok {
				return key, keyPEM, nil
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, durable.ErrCorrupt) {
		return nil, nil, fmt.Errorf("read the key of an earlier request: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if keyPEM, err = keyutil.MarshalPrivateKeyToPEM(key); err != nil {
		return nil, nil, err
	}
	if err := durable.Replace(durable.Host, path, keyPEM, durable.Synced); err != nil {
		return nil, nil, fmt.Errorf("keep the key of the request: %w", err)
	}
	return key, keyPEM, nil
}

func (o JoinOptions) forget() error {
	return durable.Remove(durable.Host, filepath.Join(o.Dir, requestFile), durable.Synced)
}

// clientTemplate is what a node asks to be called.
func clientTemplate(node string) *x509.CertificateRequest {
	return &x509.CertificateRequest{Subject: pkix.Name{CommonName: userPrefix + node, Organization: []string{group}}}
}

// nameOf is the node that a certificate is for.
func nameOf(c *x509.Certificate) (string, error) {
	name, ok := strings.CutPrefix(c.Subject.CommonName, userPrefix)
	if !ok || !slices.Equal(c.Subject.Organization, []string{group}) {
		return "", fmt.Errorf("certificate of %q is no node's: want the name %sNAME and the group %s", c.Subject, userPrefix, group)
	}
	return name, nil
}

// renderKubeconfig names the certificate by its file, beside the kubeconfig: it is replaced there.
func renderKubeconfig(server, serverName string, ca []byte, user string) ([]byte, error) {
	config := clientcmdapi.NewConfig()
	const name = "vk-firkin"
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, TLSServerName: serverName, CertificateAuthorityData: ca}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificate: clientFile, ClientKey: clientFile}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: user}
	config.CurrentContext = name
	data, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	return data, nil
}
